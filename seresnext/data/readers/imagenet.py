"""ImageNet-1k in the downloaded archives of the challenge, read in place and never extracted.

`ILSVRC2012_img_train.tar` is a tar archive of 1,000 tar archives, one per class, named by WordNet id.
`ILSVRC2012_img_val.tar` holds 50,000 images, and the development kit holds the classes of these images. The archives
are not compressed, so one `pread` at an offset reads an image.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seresnext.data.readers import Reader
from seresnext.data.readers.imagenet_classes import imagenet_classes, read_validation_classes
from seresnext.data.readers.index import Index, index_by_class
from seresnext.data.readers.index_cache import Signature, index_path, open_or_build, sign, times_of
from seresnext.data.readers.tarfiles import BLOCK, Member, ReadAt, header_name, members
from seresnext.errors import DataError
from seresnext.files import LARGEST_IMAGE, open_regular, read_at, read_piece
from seresnext.progress import progress


class Archive(NamedTuple):
    """A published file of the challenge: name, size in bytes, and MD5."""

    name: str
    size: int
    md5: str


# Sizes and sums: torchvision's datasets/imagenet.py, and the repository datasets-mila/datasets--imagenet.
TRAIN = Archive("ILSVRC2012_img_train.tar", 147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e")
VAL = Archive("ILSVRC2012_img_val.tar", 6_744_924_160, "29b22e2961454d5413ddabcf34fc5622")
DEVKIT = Archive("ILSVRC2012_devkit_t12.tar.gz", 2_568_145, "fa75699e90414af021442c21a62c3abf")
ARCHIVES = (TRAIN, VAL, DEVKIT)

OFFICIAL_COUNTS = {"train": 1_281_167, "val": 50_000}  # numbers of images in the published archives

_SPLITS = {"train": (TRAIN,), "val": (VAL, DEVKIT)}
_PIECE = 8 << 20  # bytes of a read
_CLASS_ARCHIVE = re.compile(r"(n[0-9]{8})\.tar")


class ImagenetReader(Reader):
    """The split `train` or `val` of the challenge's archives in the folder `root`.

    Order and fingerprint of the images are equal to an image folder's, by class and then by name: a run can resume from
    either. An archive of the published size must have the published contents; a smaller archive of the same form may
    have others. Raises DataError for anything else.
    """

    def __init__(self, root: Path, split: str, cache: Path | None = None) -> None:
        if split not in _SPLITS:
            raise DataError(f"ImageNet's archives have no split {split!r}; give train or val")
        paths = [root / archive.name for archive in _SPLITS[split]]
        self._path = paths[0]
        status = _status(self._path)
        self._state = status.st_size, status.st_mtime_ns
        self._index = open_or_build(
            index_path(cache, "imagenet", root, split),
            lambda: archives_signature(paths),
            lambda: _list_archive(paths, split),
        )
        self.classes, self.labels = self._index.classes, self._index.label
        self.fingerprint = self._index.fingerprint
        self.notices = tuple(f"{self._path}: {notice}" for notice in self._index.notices)

    def name(self, index: int) -> str:
        """Return a name such as `ILSVRC2012_img_train.tar/n01440764.tar/n01440764_18.JPEG`."""
        try:  # The header before the image has the name, of which it shows 100 bytes.
            name = header_name(read_at(self._path, int(self._index.offset[index]) - BLOCK, BLOCK, self._state))
        except OSError:
            name = f"image {index}"
        inner = f"{self.classes[self.labels[index]]}.tar/" if self._path.name == TRAIN.name else ""
        return f"{self._path.name}/{inner}{name}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. Raises DataError naming an image that cannot be read."""
        try:
            return read_at(self._path, int(self._index.offset[index]), int(self._index.size[index]), self._state)
        except OSError as error:
            path = self._path.parent / self.name(index)
            raise DataError(f"{path} cannot be read: {error.strerror}; put the file back, or start again") from None


def archives_signature(paths: Sequence[Path]) -> Signature:
    """Return a signature that changes with the size and times of the archives. Raises DataError for a missing one."""
    found = [_status(path) for path in paths]
    sizes = [(path.name, status.st_size) for path, status in zip(paths, found, strict=True)]
    return sign("imagenet", sizes, times=[times_of(status) for status in found])


def is_imagenet(root: Path, split: str) -> bool:
    """Whether a folder holds the archive of a split."""
    return split in _SPLITS and (root / _SPLITS[split][0].name).is_file()


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; data.format imagenet needs "
            f"{', '.join(archive.name for archive in ARCHIVES)} in one folder, as image-net.org gives them "
            "(seresnext prepare imagenet checks them)"
        ) from None


ImagesByClass = dict[str, list[Member]]
"""The images of each class by WordNet id. Classes and images are sorted by name."""


def _list_archive(paths: Sequence[Path], split: str) -> Index:
    """List the images of a split. `paths` are the archive and, for validation, the development kit."""
    path = paths[0]
    is_official = _status(path).st_size == _SPLITS[split][0].size
    truth = read_validation_classes(paths[1]) if split == "val" else []
    if is_official and split == "val":
        check_md5(paths[1], DEVKIT)  # Kits of other years number the classes differently.
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            with progress(f"index of {path.name}", size, "B") as advance:
                reached = 0

                def read(offset: int, count: int) -> bytes:
                    nonlocal reached
                    advance(offset - reached)
                    reached = offset
                    return read_piece(file.fileno(), offset, count)

                by_class = _list_val(read, size, path, truth) if split == "val" else _list_train(read, size, path)
                advance(size - reached)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; get the archive again") from None
    images = [image for found in by_class.values() for image in found]
    published = OFFICIAL_COUNTS["train"], {row.wordnet_id for row in imagenet_classes()}
    if is_official and split == "train" and (len(images), by_class.keys()) != published:
        found = f"{len(images):,} images of {len(by_class):,} classes"
        raise DataError(f"{path} holds {found}, not the images and classes of the challenge; get the archive again")
    if not by_class:
        raise DataError(f"{path} holds no images; get the archive again")
    index = index_by_class({wordnet_id: [image.name for image in found] for wordnet_id, found in by_class.items()})
    return Index(  # The archive has the names.
        index.classes,
        index.fingerprint,
        index.label,
        offset=np.array([image.offset for image in images], np.uint64),
        size=np.array([image.size for image in images], np.uint64),
    )


def _list_train(read: ReadAt, size: int, path: Path) -> ImagesByClass:
    by_class: ImagesByClass = {}
    for archive in members(read, 0, size, str(path)):
        found = _CLASS_ARCHIVE.fullmatch(archive.name)
        if not found:
            raise DataError(f"{path}: member {archive.name!a} is no archive of a class; get the archive again")
        where = f"{path}: {archive.name}"
        by_class[found[1]] = sorted(_list_images(read, archive.offset, archive.offset + archive.size, where))
        if not by_class[found[1]]:
            raise DataError(f"{where} holds no images; get the archive again")
    return dict(sorted(by_class.items()))


def _list_val(read: ReadAt, size: int, path: Path, truth: list[str]) -> ImagesByClass:
    images = sorted(_list_images(read, 0, size, str(path)))
    if len(images) != len(truth):
        raise DataError(f"{path} holds {len(images):,} images, and the kit the classes of {len(truth):,}; get both")
    by_class: ImagesByClass = {wordnet_id: [] for wordnet_id in sorted(set(truth))}
    # The archive has no order. Line i of the kit has the class of image number i.
    for number, (image, wordnet_id) in enumerate(zip(images, truth, strict=True), 1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        if image.name != name:
            raise DataError(f"{path}: {image.name!a} is not {name}, and labels follow these numbers; download again")
        by_class[wordnet_id].append(image)
    return by_class


def _list_images(read: ReadAt, start: int, end: int, where: str) -> list[Member]:
    images = list(members(read, start, end, where))
    for image in images:
        if "/" in image.name or image.size > LARGEST_IMAGE:
            raise DataError(
                f"{where}: member {image.name!a} ({image.size} bytes) is in a folder or too large for an image, unlike "
                "all members of the challenge's archives; get the archive again"
            )
    return images


def check_sizes(folder: Path) -> None:
    """Raise DataError that lists every missing file and every file with another size than published."""
    problems = []
    for archive in ARCHIVES:
        path = folder / archive.name
        size = path.stat().st_size if os.path.exists(path) else 0  # noqa: PTH110 (raises nothing)
        if size != archive.size:
            problems.append(f"{archive.name} has {size:,} bytes, and {archive.size:,} are published")
    if problems:
        heading = (
            f"{folder} does not hold ImageNet's archives as published; download each file from image-net.org (ILSVRC "
            "2012), or continue a download that stopped (wget --continue, curl --continue-at -):"
        )
        raise DataError("\n  ".join([heading, *problems]))


def check_md5(path: Path, archive: Archive) -> None:
    """Raise DataError if the MD5 sum of a file differs from the published sum. Report the progress."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with (
            os.fdopen(open_regular(path), "rb", buffering=0) as file,
            progress(f"MD5 of {path.name}", archive.size, "B") as advance,
        ):
            while piece := file.read(_PIECE):
                digest.update(piece)
                advance(len(piece))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the disk, or repeat the download") from None
    if (found := digest.hexdigest()) != archive.md5:
        raise DataError(f"{path} is damaged: its MD5 is {found}, and {archive.md5} is published; repeat the download")
