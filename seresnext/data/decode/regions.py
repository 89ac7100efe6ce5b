"""Regions of encoded images, decoded without the rest of the image if the pixels stay exact.

nvimgcodec (the `fast` extra) skips the pixels outside of a region. For a plain JPEG (jpeg.py) nvimgcodec and
Pillow give the same pixels. Pillow decodes all other images and raises the errors: nvimgcodec alone would accept
damaged JPEGs, because nvimgcodec does not read the markers behind a region.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seresnext.data.decode.jpeg import plain_size
from seresnext.data.decode.pillow import Decoding, decode_as_stored, quick_orientation
from seresnext.errors import DataError

HAS_NVIMGCODEC = find_spec("nvidia") is not None and find_spec("nvidia.nvimgcodec") is not None
"""Whether the `fast` extra is installed."""
DECODER = "nvimgcodec" if HAS_NVIMGCODEC else "Pillow"
"""The decoder of plain JPEGs. Pillow decodes all other images. The pixels are the same."""

# libjpeg-turbo decodes a region of one pixel at the left edge without the colours of the neighbours.
_LEAST_SIDE = 16
# EXIF orientations (EXIF 2.32, 4.6.4): from 5 on, rows are columns. Then rows or columns are in reverse order.
_FIRST_SWAPPED, _UPSIDE_DOWN, _MIRRORED = 5, (3, 4, 7, 8), (2, 3, 6, 7)


class Crop(NamedTuple):
    """A rectangle of an image in pixels. With `flip`, the crop is mirrored afterwards."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


class Encoded(NamedTuple):
    """The bytes of an image file, and a function that returns the name: some names cost as much as a read."""

    data: bytes
    name: Callable[[], str]


Choose = Callable[[int, int, int], Crop]
"""Returns the region of an image from the number in the batch, width and height."""


class RegionDecoder:
    """A decoder of regions for this process, not for a child."""

    def __init__(self, decoding: Decoding, fast: bool = HAS_NVIMGCODEC) -> None:
        self._decoding = decoding
        self._module: Any = None
        if fast:
            with _silence():
                self._module = nvimgcodec = importlib.import_module("nvidia.nvimgcodec")
                # Pillow interpolates colours, and does not turn images by EXIF.
                self._decoder = nvimgcodec.Decoder(
                    device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
                    backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)],
                    max_num_cpu_threads=1,
                    options=":fancy_upsampling=1",
                )
            self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False)

    def __call__(self, images: Sequence[Encoded], choose: Choose) -> list[np.ndarray | DataError]:
        """Return the region of each image (uint8 H W 3), or the error. The region of a turned image is a view."""
        plain = self._decode_plain(images, choose) if self._module else {}
        return [
            plain[number] if number in plain else self._decode_by_pillow(image, number, choose)
            for number, image in enumerate(images)
        ]

    def _decode_by_pillow(self, image: Encoded, number: int, choose: Choose) -> np.ndarray | DataError:
        try:
            whole, orientation = decode_as_stored(image.data, image.name(), self._decoding)
        except DataError as error:
            return error
        crop = _choose_stored(choose, number, *whole.size, orientation)
        # Pillow's crop has another limit of pixels than data.max_pixels. torch warns of an array that is read-only.
        region = np.asarray(whole)[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].copy()
        return _turn(region, orientation)

    def _decode_plain(self, images: Sequence[Encoded], choose: Choose) -> dict[int, np.ndarray]:
        """Return the regions of the images that nvimgcodec decodes like Pillow, by number."""
        regions, streams = {}, []
        for number, image in enumerate(images):
            size = plain_size(image.data)
            if size is None or size[0] * size[1] > self._decoding.max_pixels:
                continue
            orientation = quick_orientation(image.data) if self._decoding.exif_rotation else 1
            if orientation is None:
                continue
            left, top, width, height, _ = _choose_stored(choose, number, *size, orientation)
            if min(width, height) >= _LEAST_SIDE:
                region = self._module.Region(top, left, top + height, left + width)
                regions[number] = (height, width, 3), orientation
                streams.append(self._module.CodeStream(image.data).get_sub_code_stream(region=region))
        decoded = self._decoder.decode(streams, params=self._params) if streams else []
        return {
            number: _turn(np.asarray(pixels), orientation)
            for (number, (shape, orientation)), pixels in zip(regions.items(), decoded, strict=True)
            if pixels is not None and pixels.shape == shape
        }


def _choose_stored(choose: Choose, number: int, width: int, height: int, orientation: int) -> Crop:
    """Choose a region of the upright image. Return the region in the stored image, which has `width` and `height`."""
    if orientation >= _FIRST_SWAPPED:
        width, height = height, width
    crop = choose(number, width, height)
    left, top, wide, high, flip = crop
    if orientation in _MIRRORED:
        left = width - left - wide
    if orientation in _UPSIDE_DOWN:
        top = height - top - high
    return Crop(top, left, high, wide, flip) if orientation >= _FIRST_SWAPPED else Crop(left, top, wide, high, flip)


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of stored pixels (uint8 H W 3), turned and mirrored by an EXIF orientation, as Pillow does."""
    if orientation >= _FIRST_SWAPPED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in _UPSIDE_DOWN:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in _MIRRORED else pixels


@contextmanager
def _silence() -> Iterator[None]:
    """Drop the errors that nvimgcodec prints about missing decoders for GPUs."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
