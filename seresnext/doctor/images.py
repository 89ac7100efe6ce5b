"""All images of the data, the look at each of them, and the copies among them."""

import copy
import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self

import numpy as np
from PIL import Image

from seresnext.data.decode.pillow import Decoding, decode, is_transparent, open_image
from seresnext.data.readers import Reader
from seresnext.data.survey import is_turned
from seresnext.errors import DataError, as_utf8
from seresnext.process.packages import extra
from seresnext.progress import progress, warn

SIDE = 256  # The longest side, in pixels, for light and sharpness: a network sees no more.
_THUMBNAIL = (16, 16)
EMPTY = 16  # An image is empty if 98 % of the pixels lie within so many gray levels.
_HUGE_PIXELS, _LONG = 50_000_000, 3
_AT_ONCE = 256  # images that Ctrl-C waits for

LOOK = np.dtype([
    ("digest", "S32"), ("kinds", object), ("size", int, 2), ("light", float, 3), ("sharpness", float),
    ("bits", bool, 64), ("pixels", np.uint8, 768),
])  # fmt: skip
"""The look at an image that can be decoded.

digest: of the file. kinds: oddities, as text. size: width and height. light: the gray levels (0 to 255) that 1, 5 and
99 % of the pixels do not exceed. sharpness: the variance of the Laplacian over the variance of the gray levels. bits:
the perceptual hash. pixels: the thumbnail.
"""


class Collection(Reader):
    """The images of all splits, one split after the other. `splits` (int N) has the number of each image's split.

    A class is known by its name, so a split may lack classes.
    """

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.split_names, self._readers = tuple(readers), tuple(readers.values())
        self.classes = tuple(sorted({name for reader in self._readers for name in reader.classes}))
        place = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.concatenate(
            [np.array([place[n] for n in each.classes])[each.labels] for each in self._readers]
        )
        self.splits = np.repeat(np.arange(len(readers)), list(map(len, self._readers)))
        self._places = np.concatenate([np.arange(len(reader)) for reader in self._readers])
        self.fingerprint = " ".join(reader.fingerprint for reader in self._readers)
        self.left_out = tuple(dict.fromkeys(text for reader in self._readers for text in reader.left_out))
        self.notices = tuple(dict.fromkeys(notice for reader in self._readers for notice in reader.notices))

    def take(self, indices: np.ndarray) -> Self:
        """Return the images of some indices, in this order."""
        part = copy.copy(self)
        part.labels, part.splits, part._places = self.labels[indices], self.splits[indices], self._places[indices]
        return part

    def read(self, index: int) -> bytes:
        return self._readers[self.splits[index]].read(int(self._places[index]))

    def name(self, index: int) -> str:
        return self._readers[self.splits[index]].name(int(self._places[index]))

    def row(
        self, image: int, detail: str, other: int | None = None, suggestion: str = "", listed: bool = False
    ) -> dict[str, Any]:
        """Return an image of a finding for people and programs.

        `other`: an image that is alike. `suggestion`: a better class. `listed`: the exclusion list has the image.
        """
        path, alike = self.name(image), "" if other is None else self.name(other)
        texts = {"path": path, "split": self.split_names[self.splits[image]], "label": self.classes[self.labels[image]]}
        texts |= {"suggestion": suggestion, "other": alike, "detail": detail}
        indices = (image,) if other is None else (image, other)
        return {name: as_utf8(text) for name, text in texts.items()} | {"listed": listed, "indices": indices}


def look_at(reader: Reader, decoding: Decoding) -> tuple[np.ndarray, dict[int, str]]:
    """Read and decode each image once, in threads. Return the looks (`LOOK`) at good images, and errors by index."""
    with extra("report"):
        import imagehash

    looks, errors = np.zeros(len(reader), LOOK), dict[int, str]()

    def look(index: int) -> None:
        try:
            data = reader.read(index)
            image = decode(data, reader.name(index), decoding)
            looks[index] = _look(data, image, decoding, imagehash.phash)
        except DataError as error:
            errors[index] = str(error).removeprefix(f"{reader.name(index)} ")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, progress("look", len(reader), " images") as advance:
        for start in range(0, len(reader), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(reader)))
            advance(len(list(pool.map(look, part))))
    return np.delete(looks, list(errors)), dict(sorted(errors.items()))


def is_empty(looks: np.ndarray) -> np.ndarray:
    """Return whether an image has hardly more than one gray level (bool N)."""
    low, _, high = looks["light"].T
    return high - low < EMPTY


def _look(data: bytes, image: Image.Image, decoding: Decoding, phash: Any) -> tuple[Any, ...]:
    size, kinds = image.size, []
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    gray = np.asarray(image.convert("L"), np.float32)
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * gray[1:-1, 1:-1]
    sharpness = float(laplacian.var() / max(gray.var(), 1e-6)) if laplacian.size else 0.0
    kinds += [f"{size[0]} x {size[1]} pixels"] * (max(size) > _LONG * min(size) or size[0] * size[1] > _HUGE_PIXELS)
    with suppress(Exception):  # Odd metadata may cause any exception, and the pixels are good.
        header = open_image(data)
        kinds += ["turned by EXIF"] * (not decoding.exif_rotation and is_turned(header, data))
        kinds += ["transparent"] * is_transparent(header) + ["CMYK"] * (header.mode == "CMYK")
    light, pixels = np.percentile(gray, (1, 5, 99)), np.asarray(image.resize(_THUMBNAIL, Image.Resampling.BOX)).ravel()
    return hashlib.sha256(data).digest(), ", ".join(kinds), size, light, sharpness, phash(image).hash.ravel(), pixels


DISTANCE, SIMILARITY = 12, 0.9
"""At most so many of 64 bits differ, and the thumbnails have at least this correlation (docs/doctor.md, Copies)."""
MOST_PAIRS = 1_000_000
_ROWS = 256  # of the table of all pairs at one time: 51 MB for 50,000 images


def equal_pairs(digests: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Return the pairs of equal files, int64 P 2 with the file to keep first: the first one in the last split."""
    kept, found = {}, []
    for index in np.lexsort((np.arange(len(splits)), -splits)).tolist():
        first = kept.setdefault(digests[index], index)
        if first != index:
            found.append((first, index))
    return np.array(found, np.int64).reshape(-1, 2)


def near_pairs(bits: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the pairs of near duplicates, int64 P 2 with the lower index first, about `MOST_PAIRS` at most.

    The perceptual hashes (bool N 64) of all pairs give the candidates, and the thumbnails (uint8 N D) decide.
    """
    signs = 2 * bits.astype(np.float32) - 1
    centred = pixels.astype(np.float32)
    centred -= centred.mean(1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    found, count = [np.empty((0, 2), np.int64)], 0
    with progress("compare", len(bits), " images") as advance:
        for start in range(0, len(bits), _ROWS):
            alike = signs[start : start + _ROWS] @ signs[start:].T >= 64 - 2 * DISTANCE
            pairs = np.argwhere(np.triu(alike, 1)) + start
            for part in np.split(pairs, range(_ROWS**2, len(pairs), _ROWS**2)):
                part = part[np.einsum("nd,nd->n", *centred[part.T]) >= SIMILARITY]
                found, count = [*found, part], count + len(part)
            advance(len(alike))
            if count > MOST_PAIRS:
                done = start + len(alike)
                warn(f"{count:,} pairs of near duplicates are too many; only {done:,} images are compared with all")
                break
    return np.concatenate(found)


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return the number of the group of each of `count` images (int N). Pairs (int P 2) connect images to groups."""
    with extra("report"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), (count, count))
    return connected_components(links, directed=False)[1]
