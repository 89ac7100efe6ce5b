import io
import random
import struct
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.pillow import decode, is_gray
from seresnext.data.decode.regions import Crop, Encoded, open_decoder
from seresnext.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_the_rgb_of_pillow(mode: str, format: str):
    try:
        data = encoded(PICTURE.convert(mode), format)
    except OSError:
        pytest.skip(f"{format} has no mode {mode}")
    decoded = decode(data, "any", 1000)
    assert decoded.mode == "RGB"
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(expected))


def test_real_photographs_equal_pillow(photographs: list[bytes]):
    for data in photographs:
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(decode(data, "any", 10**8)), np.asarray(expected))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_kind_of_jpeg_equals_pillow(progressive: bool, subsampling: str):
    data = encoded(PICTURE, "JPEG", progressive=progressive, subsampling=subsampling)
    assert (b"\xff\xc2" in data) is progressive  # The mark of a progressive frame.
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(data, "any", 1000)), np.asarray(expected))


def test_the_first_picture_of_a_telephones_jpeg_is_decoded():
    """Telephones append a second picture, and Pillow calls such a JPEG by another name."""
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE.transpose(Image.Transpose.ROTATE_180)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    one = encoded(PICTURE, "JPEG")
    np.testing.assert_array_equal(np.asarray(decode(data, "any", 1000)), np.asarray(decode(one, "any", 1000)))


def test_gray_of_16_bits_keeps_its_high_byte():
    gray = np.linspace(0, 65535, 480).reshape(24, 20).astype(np.uint16)
    decoded = np.asarray(decode(encoded(Image.fromarray(gray), "PNG"), "any", 1000))
    np.testing.assert_array_equal(decoded, np.repeat((gray >> 8)[..., None], 3, axis=2))
    assert decoded.max() == 255
    assert len(np.unique(decoded)) > 200  # Pillow's own conversion would clip nearly all pixels to white.


def test_the_content_decides_not_the_name():
    np.testing.assert_array_equal(np.asarray(decode(encoded(PICTURE, "PNG"), "n02105855_2933.JPEG", 1000)), PIXELS)


def test_exif_rotation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(PICTURE, "JPEG", exif=exif.tobytes()), "any", 1000).size == (20, 24)


@pytest.mark.filterwarnings("error")
def test_broken_exif_is_ignored_without_a_warning():
    data = encoded(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01garbage")
    assert decode(data, "any", 1000).size == (20, 24)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG."""
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_pngs_of_16_bits_keep_their_high_bytes(samples: int):
    """Gray, gray and alpha, RGB, RGBA, written out here: Pillow writes 16 bits for gray only."""
    values = np.random.default_rng(samples).integers(0, 65536, (24, 20, samples), dtype=np.uint16)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    header = (20).to_bytes(4) + (24).to_bytes(4) + bytes([16, kind, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    decoded = np.asarray(decode(b"\x89PNG\r\n\x1a\n" + body, "any", 1000))
    colours = values[..., :3] if samples > 2 else np.repeat(values[..., :1], 3, axis=2)
    np.testing.assert_array_equal(decoded, colours >> 8)


def test_a_palette_that_is_missing_is_named():
    data = encoded(PICTURE.convert("P"), "PNG", transparency=3)
    start = data.index(b"PLTE") - 4
    damaged = data[:start] + data[start + 12 + int.from_bytes(data[start : start + 4]) :]
    with pytest.raises(DataError, match=r"train/7\.png .*PNG"):
        decode(damaged, "train/7.png", 1000)


def test_too_many_pixels_are_refused_from_the_header_alone():
    # A PNG with a header of 30000 x 30000 and no pixels. A decode would raise another error.
    size = (9000).to_bytes(4)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", b"")
    with pytest.raises(DataError, match=r"bomb.png has 9000 x 9000 pixels, more than data.max_pixels \(50000000\)"):
        decode(png, "bomb.png", 50_000_000)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("limit", [300, 100])
def test_the_limit_of_pixels_is_ours(format: str, limit: int, monkeypatch: pytest.MonkeyPatch):
    """The control: Pillow warns above a limit of Pillow's own, and refuses images above twice this limit."""
    data = encoded(PICTURE, format)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(Image.DecompressionBombError if limit == 100 else Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(decode(data, "any", 480)), expected)
    whole = Crop(0, 0, 20, 24, False)
    (found,) = open_decoder(480, fast=False)([Encoded(data, lambda: "any")], lambda *_: whole)
    np.testing.assert_array_equal(found, expected)
    assert ResizeCenterCrop(8, 0.875, "bilinear").decode_and_crop(data, "any", 480).shape == (8, 8, 3)
    with pytest.raises(DataError, match=r"20 x 24 .* \(479\)"):
        decode(data, "any", 479)


def test_too_many_pixels_of_a_jpeg_that_breaks_off_after_its_header():
    data = encoded(PICTURE, "JPEG")
    head = data[: data.index(b"\xff\xda") + 20]
    with pytest.raises(DataError, match=r"20 x 24 pixels, more than data.max_pixels"):
        decode(head, "any", 479)
    with pytest.raises(DataError, match="truncated"):
        decode(head, "any", 480)


def test_as_many_pixels_as_allowed_are_decoded():
    data = encoded(PICTURE, "PNG")
    assert decode(data, "any", 480).size == (20, 24)
    with pytest.raises(DataError, match=r"20 x 24 .* \(479\)"):
        decode(data, "any", 479)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "HTML"),
        (encoded(PICTURE, "JPEG")[:-200], "truncated"),
        (encoded(PICTURE, "PNG")[:-200], "PNG"),
        (encoded(PICTURE, "GIF"), "GIF image"),
    ],
    ids=["empty", "html", "short JPEG", "short PNG", "GIF"],
)
def test_an_image_that_cannot_be_decoded_is_named(data: bytes, what: str):
    with pytest.raises(DataError, match=rf"^train/cat/7\.jpg .*{what}"):
        decode(data, "train/cat/7.jpg", 1000)


def test_damage_anywhere_is_a_data_error_or_an_image():
    draws = random.Random(0)
    originals = [encoded(PICTURE.convert(mode), "PNG") for mode in ("RGB", "P", "LA")] + [encoded(PICTURE, "JPEG")]
    originals += [png_with(*METADATA.values()), encoded(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0")]
    outcomes = set()
    for _ in range(1500):
        data = bytearray(draws.choice(originals))
        for _ in range(draws.choice((1, 8))):
            data[draws.randrange(min(len(data), draws.choice((80, 10**6))))] = draws.randrange(256)
        if draws.random() < 0.5:  # Otherwise, a checksum reveals the damage.
            data = bytearray(with_right_checksums(bytes(data)))
        try:
            decode(bytes(data), "any", 10**6)
            outcomes.add("image")
        except DataError as error:
            outcomes.add(str(error))
    assert "image" in outcomes
    assert len(outcomes) > 10
    assert not any(" at 0x" in text for text in outcomes)


def with_right_checksums(data: bytes) -> bytes:
    """Return a PNG with recomputed checksums of all parts, and other bytes unchanged."""
    found, position = data[:8], 8
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        part = data[position : position + 8 + length]
        found += part + zlib.crc32(part[4:]).to_bytes(4)
        position += 12 + length
    return found if position == len(data) else data


METADATA = {
    "zTXt": chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text")),
    "iTXt": chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"text")),
    "iCCP": chunk(b"iCCP", b"name\0\0" + zlib.compress(b"profile")),
}


def png_with(*parts: bytes, place: int = 33) -> bytes:
    """Return the picture as a PNG with more parts behind the header or elsewhere."""
    data = encoded(PICTURE, "PNG")
    return data[:place] + b"".join(parts) + data[place:]


@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "many"])
def test_large_metadata_are_skipped(kind: str, place: int):
    large = zlib.compress(bytes(2 << 20))
    parts = {
        "zTXt": [chunk(b"zTXt", b"key\0\0" + large)],
        "iTXt": [chunk(b"iTXt", b"key\0\1\0\0\0" + large)],
        "iCCP": [chunk(b"iCCP", b"name\0\0" + large)],
        "many": [chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 20)))] * 70,
    }[kind]
    data = png_with(*parts, place=place)
    with pytest.raises(ValueError, match=r"MAX_TEXT_CHUNK|text chunks"):  # The control: Pillow refuses such a file.
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(np.asarray(decode(data, "any", 480)), PIXELS)
    assert not is_gray(data)
    with pytest.raises(DataError, match="20 x 24 pixels"):
        decode(data, "any", 479)
    with pytest.raises(DataError, match="any"):  # Damaged pixels are still refused.
        decode(data[: len(encoded(PICTURE, "PNG")) // 2] + data[-12:], "any", 480)


def test_errors_of_damaged_images_name_the_file_and_a_lack_of_memory_is_no_such_error(monkeypatch: pytest.MonkeyPatch):
    for error in (KeyError(1), OverflowError(2), struct.error("3"), zlib.error("4"), EOFError(), RuntimeError("6")):
        monkeypatch.setattr("seresnext.data.decode.pillow._decode", Mock(side_effect=error))
        with pytest.raises(DataError, match=r"train/7\.jpg"):
            decode(encoded(PICTURE, "JPEG"), "train/7.jpg", 480)
    monkeypatch.setattr("seresnext.data.decode.pillow._decode", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        decode(encoded(PICTURE, "JPEG"), "train/7.jpg", 480)


@pytest.mark.parametrize(
    ("image", "kind"),
    [("WEBP", "a WebP image"), ("AVIF", "an AVIF image"), ("BMP", "a BMP image"), ("TIFF", "a TIFF image"),
     ("JPEG2000", "a JPEG 2000 image"), ("ICO", "an icon")],
)  # fmt: skip
def test_images_of_other_formats_need_a_conversion(image: str, kind: str):
    with pytest.raises(DataError, match=rf"^a/7\.jpg .*{kind}.* convert"):
        decode(encoded(PICTURE.resize((16, 16)), image), "a/7.jpg", 1000)
