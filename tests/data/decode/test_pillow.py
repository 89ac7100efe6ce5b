import io
import itertools
import random
import struct
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from encoded_images import encoded, exif_behind_pixels, needs_heic, noise, rgb, turned
from fuzzing.formats import png_chunk
from fuzzing.mutations import mutate_bytes
from PIL import Image, ImageOps

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.pillow import Decoding, decode, is_gray, orientation_of, quick_orientation
from seresnext.data.decode.regions import HAS_NVIMGCODEC, Crop, Encoded, RegionDecoder
from seresnext.errors import DataError

PICTURE = noise(20, 24)
PIXELS = np.asarray(PICTURE)


def pixels(data: bytes, max_pixels: int = 1000) -> np.ndarray:
    return np.asarray(decode(data, "any", Decoding(max_pixels)))


MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "P", "1", "RGBA", "LA"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "L", "P", "1"),
    "GIF": ("P", "L"),
    "AVIF": ("RGB", "RGBA"),
    "TIFF": ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "LAB"),
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_every_mode_becomes_the_rgb_of_pillow(form: str, mode: str):
    # Pillow converts to LAB with a profile only.
    image = Image.frombytes("LAB", PICTURE.size, PICTURE.tobytes()) if mode == "LAB" else PICTURE.convert(mode)
    data = encoded(image, form)
    np.testing.assert_array_equal(pixels(data), np.asarray(rgb(data)))
    with pytest.raises(DataError, match=r"any has 20 x 24 pixels"):
        pixels(data, 479)
    with pytest.raises(DataError, match=rf"any is no (?i:{form}) image"):
        pixels(data[: len(data) // 2])


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


def test_the_tiles_of_a_tiff_are_limited_too():
    """libtiff would decode whole tiles of 3.6 billion pixels."""
    tiled = bytearray(encoded(PICTURE, "TIFF"))
    # The strips become tiles: rows of a strip and planes, then offsets and sizes (TIFF 6.0, sections 8 and 15).
    for place in range(start := int.from_bytes(tiled[4:8], "little") + 2, start + 120, 12):
        tag = int.from_bytes(tiled[place : place + 2], "little")
        if tag in (0x0116, 0x011C):
            tiled[place + 2 : place + 12] = struct.pack("<HLL", 4, 1, 60_000)
        changed = {0x0116: 0x0142, 0x011C: 0x0143, 0x0111: 0x0144, 0x0117: 0x0145}.get(tag, tag)
        tiled[place : place + 2] = changed.to_bytes(2, "little")
    assert {0x0142, 0x0143} <= Image.open(io.BytesIO(tiled)).tag_v2.keys()
    with pytest.raises(DataError, match=r"60000 x 60000 pixels, more than data\.max_pixels"):
        pixels(bytes(tiled), 10**9)


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match=r"any is no TIFF image .*no known range"):
        pixels(encoded(Image.new("F", (4, 4)), "TIFF"))


# ------------------------------------------------------------------------------------- EXIF rotation, background

UPRIGHT = Decoding(10**6, exif_rotation=True)


def upright(data: bytes) -> np.ndarray:
    """Return the pixels of an image that Pillow's own function turns: the oracle."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_images_are_turned_as_pillow_turns_them(form: str):
    shapes = set()
    for orientation in range(10):
        data = encoded(PICTURE, form, exif=turned(orientation))
        found = np.asarray(decode(data, "any", UPRIGHT))
        np.testing.assert_array_equal(found, upright(data), err_msg=str(orientation))
        np.testing.assert_array_equal(pixels(data), np.asarray(rgb(data)))
        shapes.add(found.shape)
    assert shapes == {(24, 20, 3), (20, 24, 3)}  # The control.


def test_a_png_with_exif_behind_the_pixels_and_large_texts_is_turned():
    data = exif_behind_pixels(encoded(PICTURE, "PNG", exif=turned(6)))
    expected = upright(data)
    assert expected.shape == (20, 24, 3)
    large = png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2 << 20)))  # Pillow refuses such a file.
    for each in (data, data[:33] + large + data[33:]):
        np.testing.assert_array_equal(np.asarray(decode(each, "any", UPRIGHT)), expected)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
TAG = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def jpeg_with(*bodies: bytes) -> bytes:
    """Return the picture as a JPEG with segments of metadata."""
    segments = b"".join(b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body for body in bodies)
    data = encoded(PICTURE)
    return data[:2] + segments + data[2:]


METADATA = {
    "good": encoded(PICTURE, exif=b"Exif\0\0" + TAG),
    "XMP": encoded(PICTURE, xmp=XMP),
    "EXIF and XMP": encoded(PICTURE, exif=turned(6), xmp=XMP),
    "a byte": encoded(PICTURE, exif=b"Exif\0\0" + TAG.replace(b"\0\x03\0\0\0\x01\0\x06", b"\0\x01\0\0\0\x01\x06\0")),
    "two values": encoded(PICTURE, exif=b"Exif\0\0" + TAG.replace(b"\0\0\0\x01\0\x06\0\0", b"\0\0\0\x02\0\x06\0\x03")),
    "text": encoded(PICTURE, exif=b"Exif\0\0" + TAG.replace(b"\0\x03\0\0\0\x01\0\x06", b"\0\x02\0\0\0\x01\x36\0")),
    "cut off": encoded(PICTURE, exif=b"Exif\0\0" + TAG[:-8]),
    "no header": encoded(PICTURE, exif=b"Exif\0\0" + b"garbage"),
    "another header": encoded(PICTURE, exif=b"Exif\0\0XX*\0" + TAG[4:]),
    "empty": encoded(PICTURE, exif=b"Exif\0\0"),
    "in two segments": jpeg_with(turned(6)[:-3], b"Exif\0\0" + turned(6)[-3:]),
    "a far directory": encoded(PICTURE, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", METADATA)
def test_odd_and_broken_metadata(kind: str):
    """Pillow's own function is the oracle. Where Pillow raises an error, the pixels stay.

    Cameras split EXIF of more than 64 KiB, and Pillow joins the segments.
    """
    data = METADATA[kind]
    try:
        expected = upright(data)
    except Exception:
        expected = np.asarray(rgb(data))
    np.testing.assert_array_equal(np.asarray(decode(data, "any", UPRIGHT)), expected)
    assert (expected.shape == (20, 24, 3)) == (kind in ("good", "XMP", "EXIF and XMP", "two values", "in two segments"))
    for fast in (False, True)[: 1 + HAS_NVIMGCODEC]:
        (found,) = RegionDecoder(UPRIGHT, fast)([Encoded(data, str)], lambda _, *size: Crop(0, 0, *size, False))
        np.testing.assert_array_equal(found, expected)


@needs_heic
def test_heic_is_upright_in_any_case():
    """libheif turns the pixels, and pillow-heif sets the orientation to 1. Pillow's pixels of the source are near."""
    smooth = PICTURE.resize((3, 2)).resize((96, 64), Image.Resampling.BICUBIC)
    data = encoded(smooth, "HEIF", quality=95, exif=turned(6))
    expected = np.asarray(smooth.transpose(Image.Transpose.ROTATE_270), int)
    for decoding in (UPRIGHT, Decoding(10**6)):
        found = np.asarray(decode(data, "any", decoding), int)
        assert found.shape == (96, 64, 3)
        assert np.abs(found - expected).mean() < 4
    with pytest.raises(DataError, match=r"has \d\d x \d\d pixels"):
        pixels(data, 96 * 64 - 1)
    with pytest.raises(DataError, match="any is no HEIC image"):
        pixels(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [("PNG", "RGBA", {}), ("PNG", "LA", {}), ("PNG", "P", {"transparency": 35}), ("PNG", "L", {"transparency": 115}),
     ("PNG", "RGB", {"transparency": (1, 2, 3)}), ("WEBP", "RGBA", {"lossless": True}), ("TIFF", "RGBA", {}),
     ("AVIF", "RGBA", {}), ("GIF", "P", {"transparency": 3})],
)  # fmt: skip
def test_transparent_pixels_show_the_background(form: str, mode: str, options: dict):
    image = PICTURE.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    elif options.get("transparency"):
        image.paste(options["transparency"], (0, 0, 9, 9))
    data = encoded(image, form, **options)
    whole = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = Image.new("RGB", whole.size, (10, 200, 30))
    expected.paste(whole, mask=whole)  # The usual way to flatten an image: the oracle.
    found = np.asarray(decode(data, "any", Decoding(1000, background=(10, 200, 30))))
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert (found != pixels(data)).any()  # The control.
    opaque = encoded(PICTURE)
    assert decode(opaque, "any", Decoding(1000, background=(10, 200, 30))).tobytes() == pixels(opaque).tobytes()


def test_a_gray_of_16_bits_counts_as_opaque():
    values = np.arange(480, dtype=np.uint16).reshape(24, 20) * 100
    data = encoded(Image.fromarray(values), "PNG", transparency=4700)
    found = np.asarray(decode(data, "any", Decoding(1000, background=(255, 0, 0))))
    np.testing.assert_array_equal(found, np.repeat((values >> 8)[..., None], 3, 2))


@pytest.mark.filterwarnings("ignore")
def test_the_orientation_is_that_of_pillow_in_damaged_exif_too():
    """Ordinary EXIF is read without Pillow. Pillow is the oracle for all answers of the short reader."""
    draws, seeds, quick = random.Random(0), [], 0
    for endian, orientation in itertools.product("<>", (1, 3, 6, 8)):
        exif = Image.Exif()
        exif.endian = endian
        for tag, value in {0x010F: "maker", 0x0110: "model of a camera", 0x0112: orientation, 0x011A: 72.0}.items():
            exif[tag] = value
        seeds.append(exif.tobytes())
    assert [quick_orientation(jpeg_with(seed)) for seed in seeds] == [1, 3, 6, 8] * 2
    assert quick_orientation(encoded(PICTURE)) == 1
    assert quick_orientation(encoded(PICTURE, xmp=XMP)) is None
    for number in range(4000):
        seed = draws.choice(seeds)
        data = seed if number < 8 else seed[:6] + mutate_bytes(draws, seed[6:], draws.choice(seeds)[6:80])
        data = data[:60_000]  # A segment has at most 64 KiB.
        found = quick_orientation(jpeg_with(data))
        image = Image.Image()
        image.info["exif"] = data
        quick += found is not None
        assert found in (None, orientation_of(image)), data
    assert quick > 1000
