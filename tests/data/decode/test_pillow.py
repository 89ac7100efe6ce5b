import io
import struct
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from encoded_images import encoded, noise, rgb, turned
from fuzzing.formats import png_chunk
from PIL import Image

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.pillow import Decoding, decode, is_gray
from seresnext.data.decode.regions import Crop, Encoded, RegionDecoder
from seresnext.errors import DataError

PICTURE = noise(20, 24)
PIXELS = np.asarray(PICTURE)


def pixels(data: bytes, max_pixels: int = 1000) -> np.ndarray:
    return np.asarray(decode(data, "any", Decoding(max_pixels)))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_the_rgb_of_pillow(mode: str, format: str):
    try:
        data = encoded(PICTURE.convert(mode), format)
    except OSError:
        pytest.skip(f"{format} has no mode {mode}")
    np.testing.assert_array_equal(pixels(data), np.asarray(rgb(data)))


def test_the_first_picture_of_a_telephones_jpeg_is_decoded():
    """Telephones append a second picture, and Pillow calls such a JPEG by another name."""
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE.transpose(Image.Transpose.ROTATE_180)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_array_equal(pixels(data), pixels(encoded(PICTURE)))


@pytest.mark.filterwarnings("error")
def test_exif_is_ignored_without_a_warning():
    assert decode(encoded(PICTURE, exif=turned(6)), "any", Decoding(1000)).size == (20, 24)
    broken = encoded(PICTURE, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01garbage")
    assert decode(broken, "any", Decoding(1000)).size == (20, 24)


def made_png(width: int, height: int, bits: int, kind: int, body: bytes) -> bytes:
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, kind, 0, 0, 0])
    parts = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_pngs_of_16_bits_keep_their_high_bytes(samples: int):
    """Gray, gray and alpha, RGB, RGBA, written out here: Pillow writes 16 bits for gray only."""
    values = np.random.default_rng(samples).integers(0, 65536, (24, 20, samples), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = made_png(20, 24, 16, {1: 0, 2: 4, 3: 2, 4: 6}[samples], zlib.compress(rows))
    colours = values[..., :3] if samples > 2 else np.repeat(values[..., :1], 3, axis=2)
    np.testing.assert_array_equal(pixels(data), colours >> 8)


def test_a_palette_that_is_missing_is_named():
    data = encoded(PICTURE.convert("P"), "PNG", transparency=3)
    start = data.index(b"PLTE") - 4
    damaged = data[:start] + data[start + 12 + int.from_bytes(data[start : start + 4]) :]
    with pytest.raises(DataError, match=r"train/7\.png .*PNG"):
        decode(damaged, "train/7.png", Decoding(1000))


def test_too_many_pixels_are_refused_from_the_header_alone():
    # A PNG with a header of 9000 x 9000 and no pixels. A decode would raise another error.
    with pytest.raises(DataError, match=r"bomb.png has 9000 x 9000 pixels, more than data.max_pixels \(50000000\)"):
        decode(made_png(9000, 9000, 8, 2, b""), "bomb.png", Decoding(50_000_000))


def test_too_many_pixels_of_a_jpeg_that_breaks_off_after_its_header():
    data = encoded(PICTURE)
    head = data[: data.index(b"\xff\xda") + 20]
    with pytest.raises(DataError, match=r"20 x 24 pixels, more than data.max_pixels"):
        pixels(head, 479)
    with pytest.raises(DataError, match="truncated"):
        pixels(head, 480)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("limit", [300, 100])
def test_the_limit_of_pixels_is_ours(format: str, limit: int, monkeypatch: pytest.MonkeyPatch):
    """The control: Pillow warns above a limit of Pillow's own, and refuses images above twice this limit."""
    data = encoded(PICTURE, format)
    expected = np.asarray(rgb(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(Image.DecompressionBombError if limit == 100 else Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(pixels(data, 480), expected)
    whole = Crop(0, 0, 20, 24, False)
    (found,) = RegionDecoder(Decoding(480), fast=False)([Encoded(data, lambda: "any")], lambda *_: whole)
    np.testing.assert_array_equal(found, expected)
    assert ResizeCenterCrop(8, 0.875, "bilinear").decode_and_crop(data, "any", Decoding(480)).shape == (8, 8, 3)
    with pytest.raises(DataError, match=r"20 x 24 .* \(479\)"):
        pixels(data, 479)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "HTML"),
        (encoded(PICTURE)[:-200], "truncated"),
        (encoded(PICTURE, "PNG")[:-200], "PNG"),
        (encoded(PICTURE, "JPEG2000"), "JPEG 2000 image"),
    ],
    ids=["empty", "html", "short JPEG", "short PNG", "JPEG 2000"],
)
def test_an_image_that_cannot_be_decoded_is_named(data: bytes, what: str):
    with pytest.raises(DataError, match=rf"^train/cat/7\.jpg .*{what}"):
        decode(data, "train/cat/7.jpg", Decoding(1000))


def png_with(*parts: bytes, place: int = 33) -> bytes:
    """Return the picture as a PNG with more parts behind the header or elsewhere."""
    data = encoded(PICTURE, "PNG")
    return data[:place] + b"".join(parts) + data[place:]


def metadata(unpacked: bytes) -> dict[str, bytes]:
    """Return parts of a PNG that unpack to so many bytes."""
    heads = {"zTXt": b"key\0\0", "iTXt": b"key\0\1\0\0\0", "iCCP": b"name\0\0"}
    return {kind: png_chunk(kind.encode(), head + zlib.compress(unpacked)) for kind, head in heads.items()}


@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "many"])
def test_large_metadata_are_skipped(kind: str, place: int):
    parts = [metadata(bytes(1 << 20))["zTXt"]] * 70 if kind == "many" else [metadata(bytes(2 << 20))[kind]]
    data = png_with(*parts, place=place)
    with pytest.raises(ValueError, match=r"MAX_TEXT_CHUNK|text chunks"):  # The control: Pillow refuses such a file.
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(pixels(data, 480), PIXELS)
    assert not is_gray(data)
    with pytest.raises(DataError, match="20 x 24 pixels"):
        pixels(data, 479)
    with pytest.raises(DataError, match="any"):  # Damaged pixels are still refused.
        pixels(data[: len(encoded(PICTURE, "PNG")) // 2] + data[-12:], 480)


def test_errors_of_damaged_images_name_the_file_and_a_lack_of_memory_is_no_such_error(monkeypatch: pytest.MonkeyPatch):
    for error in (KeyError(1), OverflowError(2), struct.error("3"), zlib.error("4"), EOFError(), RuntimeError("6")):
        monkeypatch.setattr("seresnext.data.decode.pillow._decode", Mock(side_effect=error))
        with pytest.raises(DataError, match=r"train/7\.jpg"):
            decode(encoded(PICTURE), "train/7.jpg", Decoding(480))
    monkeypatch.setattr("seresnext.data.decode.pillow._decode", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        decode(encoded(PICTURE), "train/7.jpg", Decoding(480))


# ---------------------------------------------------------------------------------------------- other formats

MODES = {"WEBP": ("RGB", "RGBA"), "BMP": ("RGB", "L", "P", "1"), "GIF": ("P", "L"), "AVIF": ("RGB", "RGBA"),
         "TIFF": ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "LAB")}  # fmt: skip
FORMATS = [(form, mode) for form, modes in MODES.items() for mode in modes]


@pytest.mark.parametrize(("form", "mode"), FORMATS)
def test_other_formats_have_the_pixels_of_pillow(form: str, mode: str):
    data = encoded(colours(mode), form)
    np.testing.assert_array_equal(pixels(data), np.asarray(rgb(data)))
    with pytest.raises(DataError, match=r"any has 20 x 24 pixels"):
        pixels(data, 479)
    with pytest.raises(DataError, match=rf"any is no (?i:{form}) image"):
        pixels(data[: len(data) // 2])


def colours(mode: str) -> Image.Image:
    """Return the picture in a mode; Pillow converts to LAB with a profile only."""
    return Image.frombytes("LAB", PICTURE.size, PICTURE.tobytes()) if mode == "LAB" else PICTURE.convert(mode)
