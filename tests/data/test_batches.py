import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seresnext.data.augment.crop import RandomResizedCrop, ResizeCenterCrop
from seresnext.data.batches import EvaluationImages, TrainImages
from seresnext.data.decode.regions import HAS_NVIMGCODEC
from seresnext.data.loading.loader import evaluation_keys, train_keys
from seresnext.data.order import Order
from seresnext.data.readers import Reader
from seresnext.data.readers.table import open_reader
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
def test_pixels_of_photographs_are_those_of_pillow(photographs: list[bytes], tmp_path: Path, interpolation, fast):
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


def test_evaluation_images_are_those_of_the_transform_and_not_mirrored(reader: Reader):
    transform = ResizeCenterCrop(16, 0.875, "bicubic")
    source = EvaluationImages(reader, transform, max_pixels=10**6)
    batches = [source.make(key) for key in evaluation_keys(len(reader), 10, 0, 1)]
    assert [len(batch.labels) for batch in batches] == [10, 10, 6]
    assert not torch.cat([batch.flips for batch in batches]).any()
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in batches]), reader.labels)
    last = Image.open(Path(reader._folder.parent) / reader.name(25)).convert("RGB")  # type: ignore[attr-defined]
    assert torch.equal(batches[-1].images[-1], transform(last).permute(2, 0, 1))


def damaged_folder(root: Path, damage: bytes) -> Reader:
    """Eight images of two classes and of one gray each, the fourth of them damaged."""
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


def test_or_another_of_its_class_stands_in_the_same_on_all_ranks(tmp_path: Path):
    reader = damaged_folder(tmp_path, b"")
    source = TrainImages(reader, TRANSFORM, seed=0, max_pixels=10**6, substitutes=True)
    grays, replacements = [], []
    for epoch in range(6):
        (whole,) = (source.make(key) for key in train_keys(Order(8, 8, 8, seed=0), range(1), epoch, epoch + 1))
        parts = [source.make(key) for key in train_keys(Order(8, 8, 2, seed=0), range(4), epoch, epoch + 1)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        (substitution,) = whole.substitutions
        assert [substitution] == [one for part in parts for one in part.substitutions]
        assert (substitution.image, substitution.reason[:25]) == (3, "train/class_0/3.jpg is em")
        place = whole.indices.tolist().index(3)
        assert int(whole.labels[place]) == 0
        replacements.append(substitution.replacement)
        grays.append(round(float(whole.images[place].double().mean())))
    assert set(replacements) <= {f"train/class_0/{number}.jpg" for number in range(3)}
    assert len(set(replacements)) > 1
    assert grays == [30 * int(Path(name).stem) for name in replacements]
