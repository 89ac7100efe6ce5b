"""Encoded images for tests, and the decoders that must give the same pixels."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from seresnext.data.decode.regions import HAS_NVIMGCODEC

needs_nvimgcodec = pytest.mark.skipif(not HAS_NVIMGCODEC, reason="needs the fast extra")
DECODERS = [pytest.param(False, id="pillow"), pytest.param(True, id="nvimgcodec", marks=needs_nvimgcodec)]


def noise(width: int, height: int) -> Image.Image:
    """Return noise: hard edges everywhere, the worst case of a resize."""
    rng = np.random.default_rng([width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rgb(data: bytes) -> Image.Image:
    """Return an encoded image as Pillow decodes it: the oracle."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def turned(orientation: int) -> bytes:
    """Return EXIF of a picture that was taken with the camera turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a part of a PNG."""
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
