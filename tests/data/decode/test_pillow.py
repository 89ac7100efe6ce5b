import gzip
import io
import struct
import zipfile
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from encoded_images import encoded, noise, rgb, turned
from fuzzing.formats import png_chunk
from PIL import Image

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.pillow import decode, is_gray, not_an_image
from seresnext.data.decode.regions import Crop, Encoded, RegionDecoder
from seresnext.errors import DataError

PICTURE = noise(20, 24)
PIXELS = np.asarray(PICTURE)


def pixels(data: bytes, max_pixels: int = 1000) -> np.ndarray:
    return np.asarray(decode(data, "any", max_pixels))


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
    assert decode(encoded(PICTURE, exif=turned(6)), "any", 1000).size == (20, 24)
    broken = encoded(PICTURE, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01garbage")
    assert decode(broken, "any", 1000).size == (20, 24)


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
        decode(damaged, "train/7.png", 1000)


def test_too_many_pixels_are_refused_from_the_header_alone():
    # A PNG with a header of 9000 x 9000 and no pixels. A decode would raise another error.
    with pytest.raises(DataError, match=r"bomb.png has 9000 x 9000 pixels, more than data.max_pixels \(50000000\)"):
        decode(made_png(9000, 9000, 8, 2, b""), "bomb.png", 50_000_000)


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
    (found,) = RegionDecoder(480, fast=False)([Encoded(data, lambda: "any")], lambda *_: whole)
    np.testing.assert_array_equal(found, expected)
    assert ResizeCenterCrop(8, 0.875, "bilinear").decode_and_crop(data, "any", 480).shape == (8, 8, 3)
    with pytest.raises(DataError, match=r"20 x 24 .* \(479\)"):
        pixels(data, 479)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "HTML"),
        (encoded(PICTURE)[:-200], "truncated"),
        (encoded(PICTURE, "PNG")[:-200], "PNG"),
        (encoded(PICTURE, "GIF"), "GIF image"),
    ],
    ids=["empty", "html", "short JPEG", "short PNG", "GIF"],
)
def test_an_image_that_cannot_be_decoded_is_named(data: bytes, what: str):
    with pytest.raises(DataError, match=rf"^train/cat/7\.jpg .*{what}"):
        decode(data, "train/cat/7.jpg", 1000)


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
            decode(encoded(PICTURE), "train/7.jpg", 480)
    monkeypatch.setattr("seresnext.data.decode.pillow._decode", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        decode(encoded(PICTURE), "train/7.jpg", 480)


# ---------------------------------------------------------------------------------------------- other formats


@pytest.mark.parametrize(
    ("image", "kind"),
    [("WEBP", "a WebP image"), ("AVIF", "an AVIF image"), ("BMP", "a BMP image"), ("TIFF", "a TIFF image"),
     ("JPEG2000", "a JPEG 2000 image"), ("ICO", "an icon")],
)  # fmt: skip
def test_images_of_other_formats_need_a_conversion(image: str, kind: str):
    with pytest.raises(DataError, match=rf"^a/7\.jpg .*{kind}.* convert"):
        decode(encoded(PICTURE.resize((16, 16)), image), "a/7.jpg", 1000)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"a")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x18ftypisom\0\0\2\0", "a video"),
        (b"\xff\x0a\x7a", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"MM\0*\0\0\0\x08", "a TIFF image"),
        (gzip.compress(b"a", mtime=0), "a gzip archive"),
        (zipped(), "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\n <!DOCTYPE html><html>", "an HTML page"),
        (b"\xef\xbb\xbf<html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS"),
        (b"403 Forbidden\n", "a text"),
        (bytes(9000), "zeros"),
        (b"\xd0\xcf\x11\xe0", "of an unknown kind"),
        (b"\x89PNG\n", "of an unknown kind"),
        ("Käfer".encode("latin-1"), "of an unknown kind"),
    ],
)
def test_the_kind_of_a_file(data: bytes, kind: str):
    message = str(not_an_image(data, "a/7.jpg"))
    assert message.startswith("a/7.jpg is ")
    assert kind in message
    assert ("convert" in message) == ("image," in message.partition("no JPEG")[0])
