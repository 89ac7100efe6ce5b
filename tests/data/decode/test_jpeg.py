import pytest
from encoded_images import encoded, noise, rgb
from hypothesis import example, given, settings, strategies

from seresnext.data.decode.jpeg import plain_size

PICTURE = noise(20, 24)


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    return encoded(PICTURE.convert(mode), **options)


def adobe(transform: int) -> bytes:
    """Return a JPEG with the colour transform of an Adobe marker."""
    data = jpeg()
    return data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + data[2:]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_ordinary_jpegs_are_plain(subsampling: str):
    assert plain_size(jpeg(subsampling=subsampling)) == PICTURE.size
    assert plain_size(jpeg("L")) == plain_size(adobe(1)) == PICTURE.size


def test_a_thumbnail_is_not_the_picture():
    data, thumbnail = jpeg(), segment(0xE1, b"Exif\0\0" + encoded(noise(7, 5)))
    assert plain_size(data[:2] + thumbnail + data[2:]) == PICTURE.size


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2) + body


def patched(frame: bytes) -> bytes:
    """A JPEG with another frame: marker, precision, size, components."""
    data = jpeg()
    start = data.index(b"\xff\xc0")
    return data[:start] + frame + data[start + len(frame) :]


ODD = {
    "CMYK": jpeg("CMYK"),
    "progressive": jpeg(progressive=True),
    "Adobe RGB": adobe(0),
    "12 bits": patched(b"\xff\xc0\0\x11\x0c"),
    "lossless": patched(b"\xff\xc3"),
    "arithmetic": patched(b"\xff\xc9"),
    "RGB": patched(b"\xff\xc0\0\x11\x08\0\x18\0\x14\3R\x22\0G\x11\1B\x11\1"),
    "4:4:0": patched(b"\xff\xc0\0\x11\x08\0\x18\0\x14\3\1\x12\0"),
    "4:1:1": patched(b"\xff\xc0\0\x11\x08\0\x18\0\x14\3\1\x41\0"),
    "odd chroma": patched(b"\xff\xc0\0\x11\x08\0\x18\0\x14\3\1\x22\0\2\x21"),
    "no height": patched(b"\xff\xc0\0\x11\x08\0\0\0\x14"),
    "two frames": jpeg()[:2] + segment(0xC0, b"\x08\0\x18\0\x14\1\1\x11\0") + jpeg()[2:],
    "long interval of restarts": jpeg()[:2] + segment(0xDD, bytes(3)) + jpeg()[2:],
    "cut off": jpeg()[:-40],
    "padded": jpeg() + bytes(100),
    "header only": jpeg()[:150],
    "marker only": b"\xff\xd8",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(40),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_odd_jpegs_are_not_plain(data: bytes):
    assert plain_size(data) is None


def test_sizes_of_photographs_equal_pillow(photographs: list[bytes]):
    for data in photographs:
        assert plain_size(data) == rgb(data).size


MARKERS = [bytes((0xFF, marker)) for marker in (0xC0, 0xC2, 0xC4, 0xD0, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE2, 0xED, 0xEE)]
LENGTHS = [length.to_bytes(2) for length in (*range(20), 0xFFFF)]
HEADS = [b"\x08\0\x18\0\x14\1\1\x11\0", b"\1\1\0\0\x3f\0", b"\3", b"JFIF", b"Adobe", b"8BIM\0\0", b"ICC_PROFILE\0"]


@settings(max_examples=1000)
@given(
    strategies.lists(strategies.sampled_from(MARKERS + LENGTHS + HEADS) | strategies.binary(max_size=20)).map(b"".join)
)
@example(b"\xc0\0\0" + bytes(9))  # The length of a frame includes the two length bytes and is at least 8.
@example(b"\xc0\0\x02" + bytes(9))
@example(b"\xc0\0\x07\x08\0\x18\0\x14" + bytes(9))
@example(b"\xc0\0\x08\x08\0\x18\0\x14\1" + bytes(9))
@example(b"\xc0\0\x0b\x08\0\x18\0\x14\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0\xff\xd9")
@example(b"\xc0\0\x0b\x08\0\x18\0\x14\1\1\x11\0\xff\xda\0\x0b\1\1\0\0\x3f\0\xff\xd9\0")
@example(b"\xc2\0\x0b\x08\0\x18\0\x14\1\1\x11\0\xff\xda\0\x02\1\1\0\0\x3f\0\xff\xd9")
def test_no_bytes_raise(tail: bytes):
    for data in (tail, b"\xff\xd8\xff" + tail, b"\xff\xd8\xff" + tail + b"\xff\xd9"):
        assert isinstance(plain_size(data), tuple | None)


@pytest.mark.parametrize(
    ("coded", "is_plain"),
    [
        (b"\x55\xff\0\x55", True),
        (b"\x55\xff\xd0\x55\xff\xd1", True),
        (b"\xff\xd0 \xff\xd1 \xff\xd2 \xff\xd3 \xff\xd4 \xff\xd5 \xff\xd6 \xff\xd7 \xff\xd0 ", True),
        (b"\x55\xff\xd1\x55", False),
        (b"\x55\xff\xd0\x55\xff\xd2", False),
        (b"\x55\xff\x39\x55", False),
        (b"\x55\xff\xff\0", False),
        (b"\x55\xff\xdb\x55", False),
        (b"\xff", False),
    ],
)
def test_markers_within_coded_data(coded: bytes, is_plain: bool):
    """A gray JPEG without tables, with restarts and without."""
    frame = segment(0xC0, b"\x08\0\x18\0\x14\1\1\x11\0")
    scan = segment(0xDA, b"\1\1\0\0\x3f\0") + coded + b"\xff\xd9"
    assert plain_size(b"\xff\xd8" + frame + segment(0xDD, b"\0\1") + scan) == (PICTURE.size if is_plain else None)
    is_plain_without = is_plain and b"\xff\xd0" not in coded
    assert plain_size(b"\xff\xd8" + frame + scan) == (PICTURE.size if is_plain_without else None)
