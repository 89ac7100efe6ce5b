"""Encoded images for tests, and the decoders that must give the same pixels."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from seresnext.data.decode.kinds import HAS_HEIC
from seresnext.data.decode.regions import HAS_NVIMGCODEC

needs_nvimgcodec = pytest.mark.skipif(not HAS_NVIMGCODEC, reason="needs the fast extra")
needs_heic = pytest.mark.skipif(not HAS_HEIC, reason="needs the heic extra")
DECODERS = [pytest.param(False, id="pillow"), pytest.param(True, id="nvimgcodec", marks=needs_nvimgcodec)]


def noise(width: int, height: int) -> Image.Image:
    """Return noise: hard edges everywhere, the worst case of a resize."""
    rng = np.random.default_rng([width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    if format == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
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


def exif_behind_pixels(data: bytes) -> bytes:
    """Return a PNG with the eXIf chunk moved behind the pixels, which the format permits, too."""
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4])
    chunk = data[start : start + 12 + length]
    assert int.from_bytes(chunk[-4:]) == zlib.crc32(chunk[4:-4])
    return data.replace(chunk, b"").replace(data[-12:], chunk + data[-12:])


def tagged(data: bytes, orientation: int) -> bytes:
    """Return a JPEG with the EXIF orientation. Other bytes stay the same."""
    body = turned(orientation)
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body + data[2:]


class Images:
    """A reader of bytes in memory, with two classes in turn."""

    classes, fingerprint, choice = ("a", "b"), "in memory", None

    def __init__(self, *images: bytes) -> None:
        self.images, self.labels = images, np.arange(len(images)) % 2

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"image {index}"
