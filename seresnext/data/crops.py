"""The crops of a micro-batch's images: read, decoded, and where an image is bad, taken from another of its class."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from seresnext.data.decode.regions import HAS_NVIMGCODEC, Choose, Encoded, RegionDecoder, open_decoder
from seresnext.data.loading.whereabouts import set_current_images
from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.substitute import ADVICE, ReplacedImage, candidates
from seresnext.errors import DataError

# Few enough that their pixels are still in the cache when they are resized, enough that calls do not count.
_TOGETHER = 8


class Cropped(NamedTuple):
    """A crop of an image, uint8 H W 3, and for which place in the batch; and what it replaced there."""

    position: int
    pixels: np.ndarray
    substitution: ReplacedImage | None


class Crops:
    """Reads and decodes crops. With `substitutes` a bad image is replaced, else it raises DataError naming it."""

    def __init__(
        self, reader: Reader, *, seed: int, max_pixels: int, substitutes: bool = False, fast: bool = HAS_NVIMGCODEC
    ) -> None:
        self._reader = reader
        self._seed = seed
        self._max_pixels = max_pixels
        self._substitutes = substitutes
        self._fast = fast
        self._decoder: RegionDecoder | None = None

    def of(self, key: BatchKey, choose: Choose) -> Iterator[Cropped]:
        """The crops of a micro-batch; `choose` says where, given the place in the batch, width and height."""
        if self._decoder is None:
            # Here and not earlier: this object crosses a fork, which a decoder would not survive.
            self._decoder = open_decoder(self._max_pixels, self._fast)
        addresses = key.addresses()
        for start in range(0, len(addresses), _TOGETHER):
            part = addresses[start : start + _TOGETHER]
            results = self._decode([index for _, index, _ in part], lambda n, w, h, s=start: choose(s + n, w, h))
            for number, (address, result) in enumerate(zip(part, results, strict=True)):
                if isinstance(result, DataError):
                    yield self._replace(start + number, address, result, choose)
                else:
                    yield Cropped(start + number, result, None)

    def _decode(self, indices: list[int], choose: Choose) -> list[np.ndarray | DataError]:
        assert self._decoder is not None
        results: list[np.ndarray | DataError] = []
        encoded, read = [], []
        for number, index in enumerate(indices):
            set_current_images([index])
            try:
                encoded.append(Encoded(self._reader.read(index), partial(self._reader.name, index)))
                read.append(number)
            except DataError as error:
                results.append(error)
        set_current_images(indices)
        decoded = self._decoder(encoded, lambda n, w, h: choose(read[n], w, h))
        for number, result in zip(read, decoded, strict=True):
            results.insert(number, result)
        return results

    def _replace(self, position: int, address: tuple[int, int, int], error: DataError, choose: Choose) -> Cropped:
        if not self._substitutes:
            raise DataError(f"{error}, {ADVICE}")
        for index in candidates(self._reader.labels, self._seed, address):
            (result,) = self._decode([index], lambda _, w, h: choose(position, w, h))
            if not isinstance(result, DataError):
                return Cropped(position, result, ReplacedImage(address[1], str(error), self._reader.name(index)))
        raise DataError(f"{error}; no image of the class could be used as a replacement")
