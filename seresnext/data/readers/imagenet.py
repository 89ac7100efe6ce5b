"""ImageNet-1k in the downloaded archives of the challenge, read in place and never extracted.

`ILSVRC2012_img_train.tar` is a tar archive of 1,000 tar archives, one per class, named by WordNet id.
`ILSVRC2012_img_val.tar` holds 50,000 images, and the development kit holds the classes of these images. The archives
are not compressed, so one `pread` at an offset reads an image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seresnext.data.readers import Reader
from seresnext.data.readers.devkit import read_validation_classes
from seresnext.data.readers.files import LARGEST_IMAGE, FilesAtOffsets
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.readers.index import IndexColumns, fingerprint_of
from seresnext.data.readers.index_cache import Signature, Times, index_path, open_or_build, sign
from seresnext.data.readers.tarfiles import BLOCK, Member, header_name, members
from seresnext.errors import DataError
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

_SPLITS = {"train": (TRAIN,), "val": (VAL, DEVKIT)}
# Numbers of images in the published archives.
_OFFICIAL_COUNTS = {"train": 1_281_167, "val": 50_000}
_VAL_PER_CLASS = 50
_CLASS_ARCHIVE = re.compile(r"(n[0-9]{8})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG")


class ImagenetReader(Reader):
    """The split `train` or `val` of the challenge's archives in the folder `root`.

    Order and fingerprint of the images are equal to an image folder's, by class and then by name: a run can resume from
    either. An archive of the published size, or any archive with `official`, must hold exactly the published counts; a
    smaller archive of the same form may hold others. Raises DataError for anything else.
    """

    def __init__(self, root: Path, split: str, cache: Path | None = None, official: bool | None = None) -> None:
        if split not in _SPLITS:
            raise DataError(f"ImageNet's archives have no split {split!r}; give train or val")
        self._paths = [root / archive.name for archive in _SPLITS[split]]
        status = _status(self._paths[0])
        self._path = self._paths[0]
        is_official = status.st_size == _SPLITS[split][0].size if official is None else official
        self._files = FilesAtOffsets([self._path], [(status.st_size, status.st_mtime_ns)])
        index = open_or_build(
            index_path(cache, "imagenet", root, split),
            lambda: archives_signature(self._paths, is_official),
            lambda: self._build(split, is_official),
        )
        self._index = index
        self.classes = index.classes
        self.fingerprint = index.fingerprint
        self.notices = tuple(f"{self._path}: {notice}" for notice in index.notices)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> np.ndarray:
        """The label of each image, in the mapped index that all processes share."""
        return self._index.label

    def name(self, index: int) -> str:
        """Return a name such as `ILSVRC2012_img_train.tar/n01440764.tar/n01440764_18.JPEG`."""
        if len(self._index.names):
            name = self._index.stored_name(index)
        else:
            try:
                name = header_name(self._files.read(0, int(self._index.offset[index]) - BLOCK, BLOCK))
            except OSError:
                name = f"image {index}"
        inner = f"{self.classes[self.labels[index]]}.tar/" if self._path.name == TRAIN.name else ""
        return f"{self._path.name}/{inner}{name}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. Raises DataError naming an image that cannot be read."""
        try:
            return self._files.read(0, int(self._index.offset[index]), int(self._index.size[index]))
        except OSError as error:
            raise DataError(
                f"{self._path.parent / self.name(index)} cannot be read: {error.strerror}; put the archive of this "
                "run back, or start again"
            ) from None

    def _build(self, split: str, official: bool) -> IndexColumns:
        size = self._path.stat().st_size

        def read(offset: int, count: int) -> bytes:
            try:
                return self._files.read(0, offset, count)
            except OSError as error:
                raise DataError(f"{self._path} cannot be read: {error.strerror}; get the archive again") from None

        reached = 0
        with progress(f"index of {self._path.name}", size, "B") as advance:

            def reach(position: int) -> None:
                nonlocal reached
                advance(position - reached)
                reached = position

            if split == "train":
                by_class = _list_train(read, size, self._path, reach)
            else:
                by_class = _list_val(read, size, self._path, read_validation_classes(self._paths[1]), reach)
            reach(size)  # The zeros at the end.
        if official:
            _check_counts(by_class, split, self._path)
        if not by_class:
            raise DataError(f"{self._path} holds no images; get the archive again")
        return _to_columns(by_class, self._path)


def archives_signature(paths: Sequence[Path], official: bool) -> Signature:
    """Return a signature that changes with the size and times of the archives. Raises DataError for a missing one."""
    found = [_status(path) for path in paths]
    sizes = [(path.name, status.st_size) for path, status in zip(paths, found, strict=True)]
    return sign("imagenet", official, sizes, times=[Times.of(status) for status in found])


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


class _Images(NamedTuple):
    """The images of a class, sorted by name: offsets, sizes in bytes, joined names, and lengths of the names.

    `are_plain`: the header before each image holds the name.
    """

    offset: np.ndarray
    size: np.ndarray
    lengths: np.ndarray
    names: bytes
    are_plain: bool


def _pack(images: list[Member]) -> _Images:
    images.sort(key=lambda image: image.name)
    names = [os.fsencode(image.name) for image in images]
    return _Images(
        np.array([image.offset for image in images], np.uint64),
        np.array([image.size for image in images], np.uint64),
        np.array([len(name) for name in names], np.int64),
        b"".join(names),
        all(image.is_plain for image in images),
    )


ImagesByClass = dict[str, _Images]
"""The images of each class by WordNet id, sorted."""


def _list_train(
    read: Callable[[int, int], bytes], size: int, path: Path, reach: Callable[[int], None]
) -> ImagesByClass:
    by_class: ImagesByClass = {}
    for archive in members(read, 0, size, str(path)):
        found = _CLASS_ARCHIVE.fullmatch(archive.name)
        if not found:
            raise DataError(
                f"{path}: member {archive.name!a} is no archive of a class such as n01440764.tar; get the archive again"
            )
        where = f"{path}: {archive.name}"
        images = [_flat(image, where) for image in members(read, archive.offset, archive.offset + archive.size, where)]
        if not images:
            raise DataError(f"{where} holds no images; get the archive again")
        by_class[found[1]] = _pack(images)
        reach(archive.offset + archive.size)
    return dict(sorted(by_class.items()))


def _list_val(
    read: Callable[[int, int], bytes], size: int, path: Path, truth: list[str], reach: Callable[[int], None]
) -> ImagesByClass:
    images: list[Member] = []
    for image in members(read, 0, size, str(path)):
        images.append(_flat(image, str(path)))
        reach(image.offset + image.size)
    images.sort(key=lambda member: member.name)
    if len(images) != len(truth):
        raise DataError(
            f"{path} holds {len(images):,} images, and the development kit the classes of {len(truth):,} images; "
            "get both again"
        )
    by_class: dict[str, list[Member]] = {wordnet_id: [] for wordnet_id in sorted(set(truth))}
    # The archive has no order. Line i of the kit has the class of image number i.
    for number, (image, wordnet_id) in enumerate(zip(images, truth, strict=True), 1):
        found = _VAL_IMAGE.fullmatch(image.name)
        if not found or int(found[1]) != number:
            raise DataError(
                f"{path}: member {image.name!a} is in the place of ILSVRC2012_val_{number:08}.JPEG, and labels follow "
                "these numbers; get the archive again"
            )
        by_class[wordnet_id].append(image)
    return {wordnet_id: _pack(found) for wordnet_id, found in by_class.items()}


def _flat(image: Member, where: str) -> Member:
    if "/" in image.name:
        raise DataError(
            f"{where}: member {image.name!a} is in a folder, and the challenge's archives have no folders; get the "
            "archive again"
        )
    if image.size > LARGEST_IMAGE:
        raise DataError(
            f"{where}: member {image.name!a} has {image.size} bytes, so it is no image; get the archive again"
        )
    return image


def _check_counts(by_class: ImagesByClass, split: str, path: Path) -> None:
    """Raise DataError unless classes and numbers of images are the published ones, which give the labels a meaning."""
    expected = [row.wordnet_id for row in imagenet_classes()]
    if list(by_class) != expected:
        missing, odd = sorted(set(expected) - by_class.keys()), sorted(by_class.keys() - set(expected))
        raise DataError(
            f"{path} has {len(by_class)} classes, the challenge {len(expected)} (missing: "
            f"{', '.join(missing[:10]) or '-'}; unknown: {', '.join(odd[:10]) or '-'}); get the archive again"
        )
    total = sum(len(images.size) for images in by_class.values())
    if total != _OFFICIAL_COUNTS[split]:
        raise DataError(
            f"{path} holds {total:,} images, the challenge {_OFFICIAL_COUNTS[split]:,}; get the archive again"
        )
    if split == "val":
        uneven = [wordnet_id for wordnet_id, images in by_class.items() if len(images.size) != _VAL_PER_CLASS]
        if uneven:
            count = len(by_class[uneven[0]].size)
            raise DataError(f"{path}: {uneven[0]} has {count} images, not {_VAL_PER_CLASS}; get the archive again")


def _to_columns(by_class: ImagesByClass, path: Path) -> IndexColumns:
    classes, found = tuple(by_class), list(by_class.values())
    counts = np.array([len(images.size) for images in found])
    ends = np.cumsum(np.concatenate([images.lengths for images in found]))
    names = b"".join(images.names for images in found)
    # The index needs names only when a header before an image does not hold the name.
    stored_names = {"name_ends": ends, "names": np.frombuffer(names, np.uint8)}
    return IndexColumns(
        classes=classes,
        fingerprint=fingerprint_of(classes, counts, ends, names),
        label=np.repeat(np.arange(len(classes)), counts),
        files=(path.name,),
        file_id=np.zeros(len(ends), np.uint8),
        offset=np.concatenate([images.offset for images in found]),
        size=np.concatenate([images.size for images in found]),
        **({} if all(images.are_plain for images in found) else stored_names),
    )
