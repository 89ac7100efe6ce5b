"""ImageNet-1k in the archives of the challenge as they are downloaded: read in place, never extracted.

`ILSVRC2012_img_train.tar` is a tar archive of 1,000 tar archives, one a class and named by its WordNet id;
`ILSVRC2012_img_val.tar` holds 50,000 images whose classes stand in the development kit. None is compressed, so an image
is a piece of the archive: a place and a length, and one `pread`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seresnext.data.readers.devkit import read_validation_classes
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.readers.index import Contents, fingerprint_of
from seresnext.data.readers.index_cache import Signature, Times, index_path, open_or_build, stamp_of
from seresnext.data.readers.tarfiles import BLOCK, LARGEST_IMAGE, FilesAtOffsets, Member, header_name, members
from seresnext.errors import DataError
from seresnext.progress import progress


class Archive(NamedTuple):
    """A file of the challenge as it is published: its name, its size in bytes and its MD5."""

    name: str
    size: int
    md5: str


# Sizes and sums as torchvision's datasets/imagenet.py and the repository datasets-mila/datasets--imagenet state them.
TRAIN = Archive("ILSVRC2012_img_train.tar", 147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e")
VAL = Archive("ILSVRC2012_img_val.tar", 6_744_924_160, "29b22e2961454d5413ddabcf34fc5622")
DEVKIT = Archive("ILSVRC2012_devkit_t12.tar.gz", 2_568_145, "fa75699e90414af021442c21a62c3abf")
ARCHIVES = (TRAIN, VAL, DEVKIT)

_SPLITS = {"train": (TRAIN,), "val": (VAL, DEVKIT)}
# Images of the published archives.
_OFFICIAL_COUNTS = {"train": 1_281_167, "val": 50_000}
_VAL_PER_CLASS = 50
_CLASS_ARCHIVE = re.compile(r"(n[0-9]{8})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG")


class ImagenetReader:
    """The split `train` or `val` of the challenge's archives in the folder `root`.

    Images come in the order that an image folder of them has, by class and then by name, and with its fingerprint: a
    run can go on from the one with the other. An archive of the published size must hold exactly the published counts;
    a smaller one of the same form need not, unless `official` says so. Raises DataError for anything else.
    """

    def __init__(self, root: Path, split: str, cache: Path | None = None, official: bool | None = None) -> None:
        if split not in _SPLITS:
            raise DataError(f"ImageNet's archives have the splits train and val, not {split!r}")
        self._paths = [root / archive.name for archive in _SPLITS[split]]
        status = _status(self._paths[0])
        self._path = self._paths[0]
        is_official = status.st_size == _SPLITS[split][0].size if official is None else official
        self._files = FilesAtOffsets([self._path], [(status.st_size, status.st_mtime_ns)])
        index = open_or_build(
            index_path(cache, "imagenet", root, split),
            lambda: archives_stamp(self._paths, is_official),
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
        """The label of each image; a part of the mapped index, which processes share."""
        return self._index.label

    def name(self, index: int) -> str:
        """Where an image is: `ILSVRC2012_img_train.tar/n01440764.tar/n01440764_18.JPEG`."""
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
        """The bytes of an image. Raises DataError naming it when its archive cannot be read."""
        try:
            return self._files.read(0, int(self._index.offset[index]), int(self._index.size[index]))
        except OSError as error:
            raise DataError(
                f"{self._path.parent / self.name(index)} cannot be read: {error.strerror}; was the archive changed or "
                "moved during the run?"
            ) from None

    def _build(self, split: str, official: bool) -> Contents:
        size = self._path.stat().st_size

        def read(offset: int, count: int) -> bytes:
            try:
                return self._files.read(0, offset, count)
            except OSError as error:
                raise DataError(f"{self._path} cannot be read: {error.strerror}") from None

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
            reach(size)  # The filling at the end.
        if official:
            _check_counts(by_class, split, self._path)
        if not by_class:
            raise DataError(f"{self._path} holds no images")
        return _contents(by_class, self._path)


def archives_stamp(paths: Sequence[Path], official: bool) -> Signature:
    """Changes with the size or times of an archive. Raises DataError naming one that is not there."""
    found = [_status(path) for path in paths]
    sizes = [(path.name, status.st_size) for path, status in zip(paths, found, strict=True)]
    return stamp_of("imagenet", official, sizes, times=[Times.of(status) for status in found])


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
            "(scripts/prepare_imagenet.py checks them)"
        ) from None


class _Images(NamedTuple):
    """The images of a class, sorted by name: places and sizes in bytes, names one after the other, and their lengths.

    `are_plain` says that every name stands in front of its image.
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


Listing = dict[str, _Images]
"""The images of each class, by WordNet id, sorted."""


def _list_train(read: Callable[[int, int], bytes], size: int, path: Path, reach: Callable[[int], None]) -> Listing:
    by_class: Listing = {}
    for archive in members(read, 0, size, str(path)):
        found = _CLASS_ARCHIVE.fullmatch(archive.name)
        if not found:
            raise DataError(
                f"{path}: member {archive.name!a} is no class: the archive holds one tar archive for each, such as "
                "n01440764.tar"
            )
        where = f"{path}: {archive.name}"
        images = [_flat(image, where) for image in members(read, archive.offset, archive.offset + archive.size, where)]
        if not images:
            raise DataError(f"{where} holds no images")
        by_class[found[1]] = _pack(images)
        reach(archive.offset + archive.size)
    return dict(sorted(by_class.items()))


def _list_val(
    read: Callable[[int, int], bytes], size: int, path: Path, truth: list[str], reach: Callable[[int], None]
) -> Listing:
    images: list[Member] = []
    for image in members(read, 0, size, str(path)):
        images.append(_flat(image, str(path)))
        reach(image.offset + image.size)
    images.sort(key=lambda member: member.name)
    if len(images) != len(truth):
        raise DataError(
            f"{path} holds {len(images):,} images, and the development kit names the classes of {len(truth):,}; "
            "get both again"
        )
    by_class: dict[str, list[Member]] = {wordnet_id: [] for wordnet_id in sorted(set(truth))}
    # The archive is in no order; line i of the kit is of the image number i.
    for number, (image, wordnet_id) in enumerate(zip(images, truth, strict=True), 1):
        found = _VAL_IMAGE.fullmatch(image.name)
        if not found or int(found[1]) != number:
            raise DataError(
                f"{path}: member {image.name!a} stands where ILSVRC2012_val_{number:08}.JPEG should; labels go by "
                "these numbers"
            )
        by_class[wordnet_id].append(image)
    return {wordnet_id: _pack(found) for wordnet_id, found in by_class.items()}


def _flat(image: Member, where: str) -> Member:
    if "/" in image.name:
        raise DataError(f"{where}: member {image.name!a} lies in a folder; the challenge's archives have none")
    if image.size > LARGEST_IMAGE:
        raise DataError(f"{where}: member {image.name!a} has {image.size} bytes, so it is no image")
    return image


def _check_counts(by_class: Listing, split: str, path: Path) -> None:
    """What is known of the published archives: a label would mean something else if it did not hold."""
    expected = [row.wordnet_id for row in imagenet_classes()]
    if list(by_class) != expected:
        missing, odd = sorted(set(expected) - by_class.keys()), sorted(by_class.keys() - set(expected))
        raise DataError(
            f"{path} has {len(by_class)} classes and not the challenge's {len(expected)}; "
            f"missing: {', '.join(missing[:10]) or '-'}; not of the challenge: {', '.join(odd[:10]) or '-'}"
        )
    total = sum(len(images.size) for images in by_class.values())
    if total != _OFFICIAL_COUNTS[split]:
        raise DataError(f"{path} holds {total:,} images, and the challenge has {_OFFICIAL_COUNTS[split]:,}")
    if split == "val":
        uneven = [wordnet_id for wordnet_id, images in by_class.items() if len(images.size) != _VAL_PER_CLASS]
        if uneven:
            count = len(by_class[uneven[0]].size)
            raise DataError(f"{path}: {uneven[0]} has {count} images to validate on, and not {_VAL_PER_CLASS}")


def _contents(by_class: Listing, path: Path) -> Contents:
    classes, found = tuple(by_class), list(by_class.values())
    counts = np.array([len(images.size) for images in found])
    ends = np.cumsum(np.concatenate([images.lengths for images in found]))
    names = b"".join(images.names for images in found)
    # Names stand in front of the images; they are kept only where one does not.
    kept = {"name_ends": ends, "names": np.frombuffer(names, np.uint8)}
    return Contents(
        classes=classes,
        fingerprint=fingerprint_of(classes, counts, ends, names),
        label=np.repeat(np.arange(len(classes)), counts),
        files=(path.name,),
        file_id=np.zeros(len(ends), np.uint8),
        offset=np.concatenate([images.offset for images in found]),
        size=np.concatenate([images.size for images in found]),
        **({} if all(images.are_plain for images in found) else kept),
    )
