"""Regions are equal to Pillow's crops, pixel for pixel, with both decoders."""

import io
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from encoded_images import DECODERS, encoded, needs_nvimgcodec, noise, rgb, tagged, turned
from PIL import Image, ImageFile, ImageOps

from seresnext.data.decode.jpeg import plain_size
from seresnext.data.decode.pillow import Decoding
from seresnext.data.decode.regions import Crop, Encoded, RegionDecoder
from seresnext.errors import DataError

PICTURE = noise(101, 75)


@pytest.fixture(params=DECODERS, scope="module")
def decoder(request: pytest.FixtureRequest) -> RegionDecoder:
    return RegionDecoder(Decoding(5 * 10**7), fast=request.param)


def boxes(width: int, height: int, count: int, seed: int = 0) -> list[Crop]:
    """The whole image, random crops of all sizes, and the same at the borders of blocks of 8 and 16 pixels."""
    draws = random.Random(seed)
    crops = [Crop(0, 0, width, height, False)]
    for number in range(count):
        grid = (1, 8, 16)[number % 3]
        left, top = (draws.randrange(side) // grid * grid for side in (width, height))
        right, bottom = draws.randrange(left, width) + 1, draws.randrange(top, height) + 1
        crops.append(Crop(left, top, right - left, bottom - top, False))
    return crops


def assert_is_pillows(decoder: RegionDecoder, data: bytes, count: int, seed: int = 0) -> None:
    whole = np.asarray(rgb(data))
    crops = boxes(whole.shape[1], whole.shape[0], count, seed)
    results = decoder([Encoded(data, lambda: "any")] * len(crops), lambda number, width, height: crops[number])
    for crop, result in zip(crops, results, strict=True):
        expected = whole[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        np.testing.assert_array_equal(result, expected, err_msg=str(crop))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_kind_of_jpeg(decoder: RegionDecoder, progressive, subsampling, mode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**20)  # Pillow's buffer is too small for progressive noise.
    options = {"progressive": progressive, "subsampling": subsampling, "quality": 88}
    assert_is_pillows(decoder, encoded(PICTURE.convert(mode), **options), 60)


def adobes_rgb() -> bytes:
    data = encoded(PICTURE)
    start = data.index(b"\xff\xe0")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    return data[:start] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + data[end:]


@pytest.mark.parametrize("fast", DECODERS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_of_turned_images(orientation: int, fast: bool, photographs, monkeypatch: pytest.MonkeyPatch):
    """The crop is drawn in the upright image. Pillow's own function turns the whole image: the oracle."""
    decoder = RegionDecoder(Decoding(10**7, exif_rotation=True), fast)
    if fast:  # The fast decoder must not leave such images to Pillow.
        asked = "seresnext.data.decode.regions.decode_as_stored"
        monkeypatch.setattr(asked, lambda *_: pytest.fail("Pillow was asked"))
    for number, photograph in enumerate([encoded(PICTURE), *photographs[:2]]):
        data = tagged(photograph, orientation)
        whole = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        shape = (whole.shape[1], whole.shape[0])
        crops = [crop for crop in boxes(*shape, 40, number) if min(crop.width, crop.height) >= 16]
        sizes = []

        def choose(number: int, *size: int, crops: list = crops, sizes: list = sizes) -> Crop:
            sizes.append(size)
            return crops[number]

        results = decoder([Encoded(data, lambda: "any")] * len(crops), choose)
        assert set(sizes) == {shape}
        for crop, result in zip(crops, results, strict=True):
            expected = whole[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            np.testing.assert_array_equal(result, expected, err_msg=str(crop))


SIZES = [(1, 1), (1, 40), (17, 16), (33, 17), (200, 33)]
KINDS = {
    **{f"{size}": encoded(PICTURE.resize(size), subsampling="4:2:0") for size in SIZES},
    **{f"turned {n}": encoded(PICTURE, subsampling="4:2:0", exif=turned(n)) for n in (3, 6, 8)},
    **{f"PNG {mode}": encoded(PICTURE.convert(mode), "PNG") for mode in ("RGB", "P", "L", "1", "LA", "RGBA")},
    "restarts": encoded(PICTURE, subsampling="4:2:0", restart_marker_blocks=3),
    "Adobe RGB": adobes_rgb(),
}


@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
def test_odd_sizes_and_kinds(decoder: RegionDecoder, data: bytes):
    assert_is_pillows(decoder, data, 60)


@pytest.mark.full
def test_real_photographs(decoder: RegionDecoder, imagenet_sample: Path):
    """All kinds of ImageNet's own, 4:4:4, 4:2:2, 4:2:0, gray, turned by EXIF."""
    kinds = Counter()
    for number, path in enumerate((imagenet_sample / "train").glob("*/*")):
        with Image.open(path) as image:
            kinds[tuple(layer[1:3] for layer in image.layer)] += 1  # type: ignore[attr-defined]
            kinds[image.getexif().get(0x0112, 1) > 1] += 1
        assert_is_pillows(decoder, path.read_bytes(), 1, number)
    assert kinds[True] >= 1
    gray, whole, half, quarter = [(1, 1)], [(1, 1)] * 3, [(2, 1), (1, 1), (1, 1)], [(2, 2), (1, 1), (1, 1)]
    assert all(kinds[tuple(kind)] >= 4 for kind in (gray, whole, half, quarter)), kinds


def of_both(data: bytes, draws: random.Random) -> list[np.ndarray | DataError]:
    """Return a region of an image, decoded by Pillow and by nvimgcodec."""
    state = draws.getstate()

    def choose(_: int, width: int, height: int) -> Crop:
        draws.setstate(state)
        left, top = draws.randrange(width), draws.randrange(height)
        return Crop(left, top, draws.randint(1, width - left), draws.randint(1, height - top), False)

    return [RegionDecoder(Decoding(10**7), fast)([Encoded(data, lambda: "x.jpg")], choose)[0] for fast in (False, True)]


def damaged(originals: list[bytes], draws: random.Random) -> bytes:
    """Return an image with another stretch of bytes at any place, or at the head of a segment."""
    data = draws.choice(originals)
    heads = [match.end() for match in re.finditer(rb"\xff[\xc0-\xcf\xda\xdb\xdd\xe0-\xef]", data)]
    start = draws.choice((draws.randrange(2, len(data)), draws.choice(heads) + draws.randrange(24)))
    gone, length = (draws.choice((0, 1, 2, 100, 4096, 65536)) for _ in range(2))
    damage = draws.choice((bytes(length), draws.randbytes(length), b"\xff" + draws.randbytes(1)))
    return data[:start] + damage + data[start + gone :] + b"\xff\xd9" * draws.randrange(2)


@needs_nvimgcodec
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 5}], ids=str)
def test_both_decoders_agree_on_damaged_images(photographs: list[bytes], options, capfd: pytest.CaptureFixture):
    """The control is nvimgcodec alone, which accepts images that Pillow refuses, and decodes other pixels."""
    originals = photographs
    if options:
        originals = [encoded(rgb(data).resize((160, 120)), **options) for data in photographs]
    outcomes, alone = Counter(), Counter()
    for number in range(150):
        data = damaged(originals, random.Random(number))
        ours = of_both(data, random.Random(number))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("seresnext.data.decode.regions.plain_size", credulous)
            theirs = of_both(data, random.Random(number))
        assert isinstance(ours[0], DataError) == isinstance(ours[1], DataError), (number, ours)
        outcomes[isinstance(ours[0], DataError)] += 1
        alone["refused"] += isinstance(theirs[0], DataError) and not isinstance(theirs[1], DataError)
        if not isinstance(ours[0], DataError):
            np.testing.assert_array_equal(*ours, err_msg=str(number))
            alone["pixels"] += not np.array_equal(*theirs)
    assert min(outcomes[False], outcomes[True]) > 10
    assert alone.total() > (0 if options else 10), alone
    capfd.readouterr()  # libjpeg prints warnings about damaged images.


def credulous(data: bytes) -> tuple[int, int] | None:
    """Return the size of a JPEG, and take any file with a header and an end marker for whole."""
    try:
        return Image.open(io.BytesIO(data)).size if b"\xff\xd9" in data[-64:] else None
    except Exception:
        return None


def test_too_many_pixels_are_refused_before_anything_is_decoded(decoder: RegionDecoder):
    data = encoded(PICTURE)
    start = data.index(b"\xff\xc0") + 5
    bomb = data[:start] + (60000).to_bytes(2) * 2 + data[start + 4 :]
    assert plain_size(bomb) == (60000, 60000)
    small, large = Encoded(data, lambda: "small.jpg"), Encoded(bomb, lambda: "bomb.jpg")
    asked = []

    def choose(number: int, width: int, height: int) -> Crop:
        asked.append(number)
        return Crop(0, 0, width, height, False)

    before, error, after = decoder([small, large, small], choose)
    assert isinstance(error, DataError)
    assert "bomb.jpg has" in str(error)
    assert asked == [0, 2]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "HTML"),
        (encoded(PICTURE)[:-200], "truncated"),
        (encoded(PICTURE)[:200], "JPEG"),
        (encoded(PICTURE, "PNG")[:-200], "is no PNG image"),
    ],
    ids=["empty", "html", "short JPEG", "header", "short PNG"],
)
def test_one_bad_image_is_named_and_the_others_are_decoded(decoder: RegionDecoder, data: bytes, what: str):
    crop = Crop(0, 0, 40, 30, False)  # Far above what is missing.
    good = Encoded(encoded(PICTURE), lambda: "good.jpg")
    before, error, after = decoder([good, Encoded(data, lambda: "train/cat/7.jpg"), good], lambda *_: crop)
    assert isinstance(error, DataError)
    assert str(error).startswith("train/cat/7.jpg ")
    assert what in str(error)
    np.testing.assert_array_equal(before, after)


@needs_nvimgcodec
def test_opening_and_decoding_say_nothing_on_the_terminal():
    program = (
        "from seresnext.data.decode.pillow import Decoding\n"
        "from seresnext.data.decode.regions import Crop, Encoded, RegionDecoder\n"
        "import io; from PIL import Image; file = io.BytesIO(); Image.new('RGB', (40, 40)).save(file, 'JPEG')\n"
        "images = [Encoded(file.getvalue(), str)]\n"
        "print(RegionDecoder(Decoding(10**6), True)(images, lambda *_: Crop(1, 2, 20, 30, 0))[0].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "(30, 20, 3)\n"
    assert done.stderr == ""
