import io
import random

import numpy as np
import pytest
from PIL import Image

from seresnext.data.jpeg import Frame, read_frame

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    PICTURE.convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def adobe(transform: int) -> bytes:
    """A JPEG whose colours are as an Adobe marker says."""
    data = jpeg()
    return data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + data[2:]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_ordinary_jpegs_are_plain(progressive: bool, subsampling: str):
    assert read_frame(jpeg(progressive=progressive, subsampling=subsampling)) == Frame(20, 24, True)
    assert read_frame(jpeg("L", progressive=progressive)) == Frame(20, 24, True)
    assert read_frame(adobe(1)) == Frame(20, 24, True)


def test_a_thumbnail_is_not_the_picture():
    thumbnail = io.BytesIO()
    Image.new("RGB", (7, 5)).save(thumbnail, "JPEG")
    segment = b"Exif\0\0" + thumbnail.getvalue()
    data = jpeg()
    data = data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment + data[2:]
    assert read_frame(data) == Frame(20, 24, True)


def patched(frame: bytes) -> bytes:
    """A JPEG with another frame: marker, precision, size, components."""
    data = jpeg()
    start = data.index(b"\xff\xc0")
    return data[:start] + frame + data[start + len(frame) :]


@pytest.mark.parametrize(
    "data",
    [
        jpeg("CMYK"),
        adobe(0),
        patched(b"\xff\xc0\0\x11\x0c"),
        patched(b"\xff\xc3"),
        patched(b"\xff\xc9"),
        patched(b"\xff\xc0\0\x11\x08\0\x18\0\x14\3R\x22\0G\x11\1B\x11\1"),
        patched(b"\xff\xc0\0\x11\x08\0\x18\0\x14\3\1\x12\0"),
        patched(b"\xff\xc0\0\x11\x08\0\x18\0\x14\3\1\x41\0"),
        patched(b"\xff\xc0\0\x11\x08\0\x18\0\x14\3\1\x22\0\2\x21"),
        jpeg()[:-40],
        jpeg() + bytes(100),
    ],
    ids=[
        "CMYK", "Adobe RGB", "12 bits", "lossless", "arithmetic", "RGB", "4:4:0", "4:1:1", "odd chroma", "cut off",
        "padded",
    ],
)  # fmt: skip
def test_odd_jpegs_are_not_plain(data: bytes):
    assert read_frame(data) == Frame(20, 24, False)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n" + bytes(40), jpeg()[:150], b"<html>" * 9])
def test_what_is_no_jpeg_has_no_frame(data: bytes):
    assert read_frame(data) is None


def test_sizes_of_photographs_are_those_of_pillow(photographs: list[bytes]):
    for data in photographs:
        frame = read_frame(data)
        assert frame is not None
        assert frame[:2] == Image.open(io.BytesIO(data)).size


def test_damage_is_a_frame_or_none():
    draws = random.Random(0)
    outcomes = set()
    for _ in range(3000):
        data = bytearray(jpeg())
        for _ in range(draws.choice((1, 5))):
            data[draws.randrange(min(len(data), draws.choice((40, 700))))] = draws.randrange(256)
        outcomes.add(read_frame(bytes(data[: draws.randrange(len(data) + 1)])) is None)
    assert outcomes == {True, False}
