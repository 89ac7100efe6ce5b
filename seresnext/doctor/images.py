"""All images of the data, and what one look at each of them shows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from seresnext.data.decode.pillow import decode, open_image
from seresnext.data.readers import Reader
from seresnext.data.survey import is_transparent, is_turned
from seresnext.errors import DataError
from seresnext.process.packages import extra
from seresnext.progress import progress

SIDE = 256
"""The longest side of an image, in pixels, at which light and sharpness are measured: a network sees no more."""
_THUMBNAIL = (16, 16)
_HUGE_PIXELS, _LONG = 50_000_000, 3.0  # of pixels; of the longer side over the shorter
_AT_ONCE = 256  # images between two looks at Ctrl-C


class Subset(Reader):
    """Some images of a reader, in the order of the indices."""

    def __init__(self, reader: Reader, indices: np.ndarray) -> None:
        self._reader, self._indices = reader, indices
        self.classes, self.labels = reader.classes, reader.labels[indices]
        self.fingerprint, self.notices, self.has_local_files = reader.fingerprint, (), reader.has_local_files

    def read(self, index: int) -> bytes:
        return self._reader.read(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._reader.name(int(self._indices[index]))


class Collection(Reader):
    """The images of all splits, one split after the other. `splits` (int N) has the number of the split of each image.

    A class is known by its name, so a split may lack classes.
    """

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.split_names, self._readers = tuple(readers), tuple(readers.values())
        self.classes = tuple(sorted({name for reader in self._readers for name in reader.classes}))
        place = {name: number for number, name in enumerate(self.classes)}
        labels = [np.array([place[name] for name in each.classes])[each.labels] for each in self._readers]
        self.labels = np.concatenate(labels)
        self.splits = np.repeat(np.arange(len(readers)), list(map(len, self._readers)))
        self._starts = np.cumsum([0, *map(len, self._readers)])
        self.fingerprint = " ".join(reader.fingerprint for reader in self._readers)
        self.notices = tuple(dict.fromkeys(notice for reader in self._readers for notice in reader.notices))
        self.has_local_files = all(reader.has_local_files for reader in self._readers)

    def read(self, index: int) -> bytes:
        split = self.splits[index]
        return self._readers[split].read(index - int(self._starts[split]))

    def name(self, index: int) -> str:
        split = self.splits[index]
        return self._readers[split].name(index - int(self._starts[split]))


class Look(NamedTuple):
    """What one look at an image shows. With an `error` the image cannot be decoded, and the other fields are empty.

    digest: of the file. kinds: oddities. size: width and height. light: the gray levels (0 to 255) that 1, 5 and 99 %
    of the pixels do not exceed. sharpness: the variance of the Laplacian over the variance of the gray levels. bits:
    the perceptual hash, bool 64. pixels: a thumbnail, uint8 768.
    """

    error: str = ""
    digest: bytes = b""
    kinds: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    light: tuple[float, float, float] = (0, 0, 0)
    sharpness: float = 0
    bits: np.ndarray = np.zeros(64, bool)
    pixels: np.ndarray = np.zeros(768, np.uint8)


@dataclass(frozen=True)
class Looks:
    """The looks at all images, as columns with a row for each image (see `Look`)."""

    error: Sequence[str]
    digest: Sequence[bytes]
    kinds: Sequence[tuple[str, ...]]
    size: np.ndarray
    light: np.ndarray
    sharpness: np.ndarray
    bits: np.ndarray
    pixels: np.ndarray

    @property
    def good(self) -> np.ndarray:
        """Return the indices of the images that can be decoded."""
        return np.array([index for index, error in enumerate(self.error) if not error], dtype=np.int64)


def look_at(reader: Reader, max_pixels: int) -> Looks:
    """Read and decode each image once, in threads, and show the progress. Ctrl-C waits for a few images only."""
    with extra("report"):
        import imagehash

    def look(index: int) -> Look:
        try:
            data = reader.read(index)
            return _look(data, decode(data, reader.name(index), max_pixels), imagehash.phash)
        except DataError as error:
            return Look(str(error))

    found: list[Look] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, progress("look", len(reader), " images") as advance:
        for start in range(0, len(reader), _AT_ONCE):
            found += pool.map(look, range(start, min(start + _AT_ONCE, len(reader))))
            advance(len(found) - start)
    error, digest, kinds, *numbers = zip(*found, strict=True)
    return Looks(error, digest, kinds, *map(np.array, numbers))


def _look(data: bytes, image: Image.Image, phash: Any) -> Look:
    size = image.size
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    gray = np.asarray(image.convert("L"), np.float32)
    laplacian = np.zeros(1)
    if min(gray.shape) > 2:
        around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
        laplacian = around - 4 * gray[1:-1, 1:-1]
    return Look(
        digest=hashlib.sha256(data).digest(),
        kinds=_kinds(data, size),
        size=size,
        light=tuple(np.percentile(gray, (1, 5, 99)).tolist()),
        sharpness=float(laplacian.var() / max(gray.var(), 1e-6)),
        bits=phash(image).hash.ravel(),
        pixels=np.asarray(image.resize(_THUMBNAIL, Image.Resampling.BOX)).ravel(),
    )


def _kinds(data: bytes, size: tuple[int, int]) -> tuple[str, ...]:
    """Return the oddities of an image, as words."""
    kinds = [f"long ({size[0]} x {size[1]} pixels)"] if max(size) > _LONG * min(size) else []
    kinds += [f"huge ({size[0]} x {size[1]} pixels)"] if size[0] * size[1] > _HUGE_PIXELS else []
    with suppress(Exception):  # Odd metadata may cause any exception, and the pixels are good.
        header = open_image(data)
        kinds += ["turned by EXIF"] * is_turned(header, data) + ["transparent"] * is_transparent(header)
        kinds += ["CMYK"] * (header.mode == "CMYK")
    return tuple(kinds)
