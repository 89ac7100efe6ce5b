from pathlib import Path

import numpy as np
import pytest

from seresnext.data.augment.crop import Crop
from seresnext.data.crops import Cropped, Crops
from seresnext.data.decode.regions import HAS_NVIMGCODEC
from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.readers.table import open_reader
from seresnext.errors import DataError

DECODERS = [
    pytest.param(False, id="pillow"),
    pytest.param(True, id="nvimgcodec", marks=pytest.mark.skipif(not HAS_NVIMGCODEC, reason="needs the fast extra")),
]


@pytest.fixture
def root(tiny_image_folder, tmp_path: Path) -> Path:
    """Three classes of 8 images, of this test's own."""
    source = tiny_image_folder()
    for path in sorted(source.glob("train/*/*")):
        copy = tmp_path / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def crops(reader: Reader, indices: list[int], fast: bool, substitutes: bool = True, epoch: int = 0) -> list[Cropped]:
    source = Crops(reader, seed=0, max_pixels=10**6, substitutes=substitutes, fast=fast)
    key = BatchKey(0, 0, epoch, np.array(indices))
    return sorted(source.of(key, lambda position, *_: Crop(position % 10, 3, 20, 30, False)))


BAD = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "undecodable": lambda path: path.write_bytes(b"no image" * 50),
    "deleted": lambda path: path.unlink(),
}


def path_of(root: Path, reader: Reader, index: int) -> Path:
    return root / reader.name(index)


@pytest.mark.parametrize("fast", DECODERS)
def test_all_crops_come_with_their_place(root: Path, fast: bool):
    reader = open_reader(root, "train")
    found = crops(reader, [5, 3, 5, *range(20)], fast)
    assert [crop.position for crop in found] == list(range(23))
    assert all(crop.pixels.shape == (30, 20, 3) and crop.substitution is None for crop in found)
    np.testing.assert_array_equal(found[0].pixels, crops(reader, [5], fast)[0].pixels)


@pytest.mark.parametrize("fast", DECODERS)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named(root: Path, kind: str, fast: bool):
    reader = open_reader(root, "train")
    BAD[kind](path_of(root, reader, 9))
    with pytest.raises(DataError, match=rf"{reader.name(9)}.*data\.on_error=substitute"):
        crops(reader, list(range(24)), fast, substitutes=False)


@pytest.mark.parametrize("fast", DECODERS)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_replaced_by_one_of_its_class(root: Path, kind: str, fast: bool):
    reader = open_reader(root, "train")
    before = crops(reader, list(range(24)), fast)
    BAD[kind](path_of(root, reader, 9))
    after = crops(reader, list(range(24)), fast)
    for position, (one, other) in enumerate(zip(before, after, strict=True)):
        if position != 9:
            np.testing.assert_array_equal(one.pixels, other.pixels)
    substitution = after[9].substitution
    assert substitution is not None
    assert substitution.image == 9
    assert reader.name(9) in substitution.reason
    # Cropped at the place of the bad one: the same crop of another image.
    names = [reader.name(index) for index in range(24)]
    other = names.index(substitution.replacement)
    assert other != 9
    assert reader.labels[other] == reader.labels[9]
    np.testing.assert_array_equal(after[9].pixels, crops(reader, [0] * 9 + [other], fast)[9].pixels)
    assert len({crops(reader, [9], fast, epoch=epoch)[0].substitution for epoch in range(9)}) > 2


@pytest.mark.parametrize("fast", DECODERS)
def test_replacements_that_are_bad_too_are_passed_over(root: Path, fast: bool):
    reader = open_reader(root, "train")
    for index in range(8, 16):
        if index != 12:
            BAD["empty"](path_of(root, reader, index))
    for crop in crops(reader, [8, 9, 10], fast):
        assert crop.substitution is not None
        assert crop.substitution.replacement == reader.name(12)
    BAD["empty"](path_of(root, reader, 12))
    with pytest.raises(DataError, match=f"{reader.name(9)} is empty.*no image of the class"):
        crops(reader, [9], fast)


@pytest.mark.skipif(not HAS_NVIMGCODEC, reason="needs the fast extra")
def test_both_decoders_give_the_same_crops_and_replacements(root: Path):
    reader = open_reader(root, "train")
    BAD["truncated"](path_of(root, reader, 4))
    for one, other in zip(crops(reader, list(range(24)), True), crops(reader, list(range(24)), False), strict=True):
        assert one.substitution == other.substitution
        np.testing.assert_array_equal(one.pixels, other.pixels)
