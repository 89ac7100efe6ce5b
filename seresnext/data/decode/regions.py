"""Regions of encoded images, decoded without the rest of the image if the pixels stay exact.

nvimgcodec (the `fast` extra) skips the pixels outside of a region. For a JPEG that `is_plain` (jpeg.py) nvimgcodec and
Pillow give the same pixels. Pillow decodes all other images, decides whether a file is an image, and decodes all images
where the extra is not installed. nvimgcodec alone would accept damaged JPEGs that Pillow refuses, because nvimgcodec
does not read the markers behind a region.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np

from seresnext.data.decode.jpeg import read_frame
from seresnext.data.decode.pillow import decode
from seresnext.errors import DataError

HAS_NVIMGCODEC = importlib.util.find_spec("nvidia") is not None and (
    importlib.util.find_spec("nvidia.nvimgcodec") is not None
)
"""Whether the `fast` extra is installed."""

# libjpeg-turbo decodes a region of one pixel at the left edge without the colours of the neighbours. Pillow decodes
# small regions at low cost.
_LEAST_SIDE = 16


class Crop(NamedTuple):
    """A rectangle of an image in pixels. With `flip`, the crop is mirrored afterwards."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


class Encoded(NamedTuple):
    """The bytes of an image file, and a function that returns the name for messages."""

    data: bytes
    naming: Callable[[], str]

    @property
    def name(self) -> str:
        """The name of the image."""
        return self.naming()


Choose = Callable[[int, int, int], Crop]
"""Returns the region of an image from the number in the batch, width and height."""


class RegionDecoder(Protocol):
    """Decodes a region of each image: returns uint8 H W 3, or the error."""

    def __call__(self, images: Sequence[Encoded], choose: Choose) -> list[np.ndarray | DataError]: ...


def open_decoder(max_pixels: int, fast: bool = HAS_NVIMGCODEC) -> RegionDecoder:
    """Return a decoder for this process, not for a child. Images of more than `max_pixels` pixels are refused."""
    return _Nvimgcodec(max_pixels) if fast else _Pillow(max_pixels)


class _Pillow:
    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def __call__(self, images: Sequence[Encoded], choose: Choose) -> list[np.ndarray | DataError]:
        return [self.one(image, number, choose) for number, image in enumerate(images)]

    def one(self, image: Encoded, number: int, choose: Choose) -> np.ndarray | DataError:
        try:
            whole = decode(image.data, image.name, self._max_pixels)
        except DataError as error:
            return error
        crop = choose(number, *whole.size)
        # Pillow's crop has another limit of pixels than data.max_pixels. torch warns of an array that is read-only.
        return np.asarray(whole)[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].copy()


class _Nvimgcodec:
    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._pillow = _Pillow(max_pixels)
        with _silence():
            nvimgcodec: Any = importlib.import_module("nvidia.nvimgcodec")
            # By default, nvimgcodec does not interpolate colours, and turns images by EXIF. Pillow does the opposite.
            self._decoder = nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
                backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)],
                max_num_cpu_threads=1,
                options=":fancy_upsampling=1",
            )
        self._module = nvimgcodec
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False)

    def __call__(self, images: Sequence[Encoded], choose: Choose) -> list[np.ndarray | DataError]:
        results: list[np.ndarray | DataError | None] = [None] * len(images)
        numbers, shapes, streams = [], [], []
        for number, image in enumerate(images):
            frame = read_frame(image.data)
            if frame is None or not frame.is_plain or frame.width * frame.height > self._max_pixels:
                continue
            left, top, width, height, _ = choose(number, frame.width, frame.height)
            if width < _LEAST_SIDE or height < _LEAST_SIDE:
                continue
            region = self._module.Region(top, left, top + height, left + width)
            numbers.append(number)
            shapes.append((height, width, 3))
            streams.append(self._module.CodeStream(image.data).get_sub_code_stream(region=region))
        decoded = self._decoder.decode(streams, params=self._params) if streams else []
        for number, shape, pixels in zip(numbers, shapes, decoded, strict=True):
            if pixels is not None and pixels.shape == shape:
                results[number] = np.asarray(pixels)
        # Pillow decodes the other images, and raises the errors.
        return [
            self._pillow.one(images[number], number, choose) if result is None else result
            for number, result in enumerate(results)
        ]


@contextmanager
def _silence() -> Iterator[None]:
    """Drop all output to the terminal: nvimgcodec prints warnings about missing decoders for GPUs."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in saved:
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
