import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seresnext.data.augment.crop import RandomResizedCrop, ResizeCenterCrop
from seresnext.data.batches import CroppedImage, CropReader, EvaluationImages, TrainImages
from seresnext.data.decode.regions import HAS_NVIMGCODEC, Crop
from seresnext.data.formats import open_reader
from seresnext.data.loading.loader import evaluation_keys, train_keys
from seresnext.data.order import BatchKey, Order
from seresnext.data.readers import Reader
from seresnext.errors import DataError
from seresnext.randomness import rng_at

DECODERS = [
    pytest.param(False, id="pillow"),
    pytest.param(True, id="nvimgcodec", marks=pytest.mark.skipif(not HAS_NVIMGCODEC, reason="needs the fast extra")),
]
TRANSFORM = RandomResizedCrop(16, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, "bilinear")


def test_a_batch_is_as_promised(reader: Reader):
    source = TrainImages(reader, TRANSFORM, seed=0, max_pixels=10**6)
    first, second = (source.make(key) for key in train_keys(Order(len(reader), 8, 4, seed=0), range(2), 1, 2))
    assert first.images.shape == (4, 3, 16, 16)
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert [part.dtype for part in first[:4]] == [torch.uint8, torch.int64, torch.bool, torch.int64]
    assert [first[4:], second[4:]] == [(1, 0, None, (), ()), (1, 1, None, (), ())]
    np.testing.assert_array_equal(first.labels, reader.labels[first.indices])


@pytest.mark.parametrize("fast", DECODERS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_of_photographs_equal_pillow(photographs: list[bytes], tmp_path: Path, interpolation, fast):
    """From the file to the batch: the crop that is drawn at the image's address, cut and resized by Pillow."""
    for number, data in enumerate(photographs):
        (folder := tmp_path / "train" / f"class_{number % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.JPEG").write_bytes(data)
    transform = RandomResizedCrop(224, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, interpolation)
    reader = open_reader(tmp_path, "train")
    source = TrainImages(reader, transform, seed=5, max_pixels=10**8, fast=fast)
    own, other = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
    levels = 2
    if interpolation == "bicubic":
        own, other, levels = other, own, 10
    seen = []
    for key in train_keys(Order(len(reader), 5, 5, seed=5), range(1), 0, 4):
        batch = source.make(key)
        for pixels, flip, index in zip(batch.images, batch.flips, batch.indices, strict=True):
            image = Image.open(io.BytesIO(reader.read(int(index)))).convert("RGB")
            left, top, width, height, flipped = transform.draw(
                *image.size, rng_at(5, "augment", key.epoch, int(index), 0)
            )
            assert bool(flip) == flipped

            def difference(box, resampling, image=image, pixels=pixels) -> int:
                expected = np.asarray(image.crop(box).resize((224, 224), resampling), np.int16)
                return int(np.abs(pixels.permute(1, 2, 0).numpy().astype(np.int16) - expected).max())

            box = (left, top, left + width, top + height)
            assert difference(box, own) <= levels
            # The controls: a pixel aside, and the other filter.
            seen.append((difference((box[0] + 1, box[1], box[2] + 1, box[3]), own), difference(box, other)))
    assert len(seen) == 20
    for control in zip(*seen, strict=True):
        assert sum(difference > levels for difference in control) >= 15


def test_evaluation_images_equal_the_transform_and_not_mirrored(reader: Reader):
    transform = ResizeCenterCrop(16, 0.875, "bicubic")
    source = EvaluationImages(reader, transform, max_pixels=10**6)
    batches = [source.make(key) for key in evaluation_keys(len(reader), 10, 0, 1)]
    assert [len(batch.labels) for batch in batches] == [10, 10, 6]
    assert not torch.cat([batch.flips for batch in batches]).any()
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in batches]), reader.labels)
    last = Image.open(Path(reader._folder.parent) / reader.name(25)).convert("RGB")  # type: ignore[attr-defined]
    assert torch.equal(batches[-1].images[-1], transform(last).permute(2, 0, 1))


def damaged_folder(root: Path, damage: bytes) -> Reader:
    """Write eight images of two classes, each in one gray, and damage the fourth."""
    for number in range(8):
        path = root / "train" / f"class_{number // 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number * 30,) * 3).save(path)
    path.parent.parent.joinpath("class_0", "3.jpg").write_bytes(damage)
    return open_reader(root, "train")


def test_a_file_that_is_damaged_is_named(tmp_path: Path):
    reader = damaged_folder(tmp_path, b"no image")
    source = TrainImages(reader, TRANSFORM, seed=0, max_pixels=10**6)
    (key,) = train_keys(Order(8, 8, 8, seed=0), range(1), 0, 1)
    with pytest.raises(DataError, match=r"^train/class_0/3\.jpg .*text"):
        source.make(key)


def test_an_evaluation_records_every_unreadable_image(tmp_path: Path):
    """Bad images are black, and the other images are unchanged. One file is no image, and one file was removed."""
    transform = ResizeCenterCrop(16, 0.875, "bilinear")
    reader = damaged_folder(tmp_path, b"no image")
    (key,) = evaluation_keys(8, 8, 0, 1)
    source = EvaluationImages(reader, transform, max_pixels=10**6)
    before = source.make(key)
    (tmp_path / "train" / "class_1" / "6.jpg").unlink()
    batch = source.make(key)
    assert [index for index, _ in batch.unreadable] == [3, 6]
    for (_, message), name in zip(batch.unreadable, ("train/class_0/3.jpg", "train/class_1/6.jpg"), strict=True):
        assert name in message
    assert not batch.images[[3, 6]].any()
    good = [0, 1, 2, 4, 5, 7]
    assert torch.equal(batch.images[good], before.images[good])
    assert [int(image.double().mean().round()) for image in batch.images[good]] == [30 * number for number in good]


def test_a_storage_that_does_not_answer_is_not_waited_for_image_by_image(tmp_path: Path, monkeypatch):
    reader = damaged_folder(tmp_path, b"no image")
    monkeypatch.setattr("seresnext.data.batches._SLOW_FAILURE", -1.0)
    with pytest.raises(DataError, match=r"^train/class_0/3.jpg"):
        EvaluationImages(reader, ResizeCenterCrop(16, 0.875, "bilinear"), max_pixels=10**6).make(
            next(evaluation_keys(8, 8, 0, 1))
        )


def test_a_bad_image_is_replaced_by_the_same_image_on_all_ranks(tmp_path: Path):
    reader = damaged_folder(tmp_path, b"")
    source = TrainImages(reader, TRANSFORM, seed=0, max_pixels=10**6, substitutes=True)
    grays, replacements = [], []
    for epoch in range(6):
        (whole,) = (source.make(key) for key in train_keys(Order(8, 8, 8, seed=0), range(1), epoch, epoch + 1))
        parts = [source.make(key) for key in train_keys(Order(8, 8, 2, seed=0), range(4), epoch, epoch + 1)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        (replaced,) = whole.replaced
        assert [replaced] == [one for part in parts for one in part.replaced]
        assert (replaced.image, replaced.reason[:25]) == (3, "train/class_0/3.jpg is em")
        place = whole.indices.tolist().index(3)
        assert int(whole.labels[place]) == 0
        replacements.append(replaced.replacement)
        grays.append(round(float(whole.images[place].double().mean())))
    assert set(replacements) <= {f"train/class_0/{number}.jpg" for number in range(3)}
    assert len(set(replacements)) > 1
    assert grays == [30 * int(Path(name).stem) for name in replacements]


# --------------------------------------------------------------------------------------------------------- crops


@pytest.fixture
def root(tiny_image_folder, tmp_path: Path) -> Path:
    """Three classes of 8 images, of this test's own."""
    source = tiny_image_folder()
    for path in sorted(source.glob("train/*/*")):
        copy = tmp_path / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def crops(
    reader: Reader, indices: list[int], fast: bool, substitutes: bool = True, epoch: int = 0
) -> list[CroppedImage]:
    source = CropReader(reader, seed=0, max_pixels=10**6, substitutes=substitutes, fast=fast)
    key = BatchKey(0, 0, epoch, np.array(indices))
    return sorted(source.read(key, lambda position, *_: Crop(position % 10, 3, 20, 30, False)))


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
    assert all(crop.pixels.shape == (30, 20, 3) and crop.replaced is None for crop in found)
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
    substitution = after[9].replaced
    assert substitution is not None
    assert substitution.image == 9
    assert reader.name(9) in substitution.reason
    # CroppedImage at the place of the bad one: the same crop of another image.
    names = [reader.name(index) for index in range(24)]
    other = names.index(substitution.replacement)
    assert other != 9
    assert reader.labels[other] == reader.labels[9]
    np.testing.assert_array_equal(after[9].pixels, crops(reader, [0] * 9 + [other], fast)[9].pixels)
    assert len({crops(reader, [9], fast, epoch=epoch)[0].replaced for epoch in range(9)}) > 2


@pytest.mark.parametrize("fast", DECODERS)
def test_replacements_that_are_bad_too_are_skipped(root: Path, fast: bool):
    reader = open_reader(root, "train")
    for index in range(8, 16):
        if index != 12:
            BAD["empty"](path_of(root, reader, index))
    for crop in crops(reader, [8, 9, 10], fast):
        assert crop.replaced is not None
        assert crop.replaced.replacement == reader.name(12)
    BAD["empty"](path_of(root, reader, 12))
    with pytest.raises(DataError, match=f"{reader.name(9)} is empty.*no image of the class"):
        crops(reader, [9], fast)


@pytest.mark.skipif(not HAS_NVIMGCODEC, reason="needs the fast extra")
def test_both_decoders_give_the_same_crops_and_replacements(root: Path):
    reader = open_reader(root, "train")
    BAD["truncated"](path_of(root, reader, 4))
    for one, other in zip(crops(reader, list(range(24)), True), crops(reader, list(range(24)), False), strict=True):
        assert one.replaced == other.replaced
        np.testing.assert_array_equal(one.pixels, other.pixels)
