import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_images import DECODERS, Images, encoded, noise, rgb, turned
from PIL import Image, ImageOps

from seresnext.data.augment.crop import ResizeCenterCrop, random_resized_crop, resize_into
from seresnext.data.batches import Batch, EvaluationImages, TrainImages
from seresnext.data.decode.kinds import HAS_HEIC
from seresnext.data.decode.pillow import Decoding
from seresnext.data.formats import open_reader
from seresnext.data.loading.loader import evaluation_keys, open_batches, train_keys
from seresnext.data.order import BatchKey, Order
from seresnext.data.readers import Reader
from seresnext.errors import DataError
from seresnext.randomness import rng_at
from seresnext.recipe.schema import AugmentSection

AUGMENT = AugmentSection()


@pytest.mark.parametrize("fast", DECODERS)
@pytest.mark.parametrize(("interpolation", "levels"), [("bilinear", 2), ("bicubic", 10)])
def test_pixels_of_photographs_equal_pillow(photographs: list[bytes], interpolation, levels, fast):
    """From the file to the batch: the crop that is drawn at the image's address, cut and resized by Pillow."""
    augment = AugmentSection(interpolation=interpolation)
    reader = Images(*photographs)
    source = TrainImages(reader, augment, 224, seed=5, decoding=Decoding(10**8), fast=fast)
    filters = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]
    own, other = filters if interpolation == "bilinear" else filters[::-1]
    controls = []
    for key in train_keys(Order(len(reader), 5, 5, seed=5), range(1), 0, 4):
        batch = source.make(key)
        for pixels, flip, index in zip(batch.images, batch.flips, batch.indices.tolist(), strict=True):
            image = rgb(reader.read(index))
            crop = random_resized_crop(augment, *image.size, rng_at(5, "augment", key.epoch, index, 0))
            assert bool(flip) == crop.flip

            def is_close(aside: int, filter: Image.Resampling, image=image, pixels=pixels, crop=crop) -> bool:
                box = (crop.left + aside, crop.top, crop.left + crop.width + aside, crop.top + crop.height)
                expected = np.asarray(image.crop(box).resize((224, 224), filter), np.int16)
                return np.abs(pixels.permute(1, 2, 0).numpy().astype(np.int16) - expected).max() <= levels

            assert is_close(0, own)
            # The controls: a pixel aside, and the other filter.
            controls.append((is_close(1, own), is_close(0, other)))
    assert len(controls) == 20
    assert max(map(sum, zip(*controls, strict=True))) <= 5


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_that_exif_turns_give_the_batches_of_upright_ones(reader: Reader, orientation: int):
    """Bit for bit: a run on such files is the run on upright files."""
    uprights = [rgb(reader.read(index)) for index in range(len(reader))]
    stored = {6: 8, 8: 6}.get(orientation, orientation)  # The inverse of a turn; mirrors are their own inverse.
    turns = [ImageOps.exif_transpose(with_orientation(image, stored)) for image in uprights]
    files = [encoded(image, "PNG", exif=turned(orientation)) for image in turns]
    same = TrainImages(Images(*files), AUGMENT, 16, seed=0, decoding=Decoding(10**6, exif_rotation=True))
    other = TrainImages(Images(*files), AUGMENT, 16, seed=0, decoding=Decoding(10**6))
    train = TrainImages(reader, AUGMENT, 16, seed=0, decoding=Decoding(10**6))
    (key,) = train_keys(Order(len(reader), 16, 16, seed=0), range(1), 0, 1)
    assert torch.equal(same.make(key).images, train.make(key).images)
    assert not torch.equal(other.make(key).images, train.make(key).images)  # The control.


def with_orientation(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[0x0112] = orientation
    return image


def test_workers_decode_the_formats_that_the_parent_decoded_before():
    """The codecs of AVIF and HEIC have threads, which no fork takes along."""
    forms = ["WEBP", "AVIF", "GIF", "TIFF", "BMP", *["HEIF"] * HAS_HEIC]
    images = Images(*(encoded(noise(64, 48), form) for form in forms))
    source = EvaluationImages(images, ResizeCenterCrop(16, 0.875, "bicubic"), decoding=Decoding(10**6))
    keys = list(evaluation_keys(len(images), 1, 0, 1))
    before = [source.make(key) for key in keys]
    assert not any(batch.unreadable for batch in before)
    with open_batches(source, keys, workers=2, timeout=60, pin_memory=False) as batches:
        for one, other in zip(before, batches, strict=True):
            assert torch.equal(one.images, other.images)


def test_evaluation_images_equal_the_transform_and_are_not_mirrored(reader: Reader):
    transform = ResizeCenterCrop(16, 0.875, "bicubic")
    source = EvaluationImages(reader, transform, decoding=Decoding(10**6))
    batches = [source.make(key) for key in evaluation_keys(len(reader), 10, 0, 1)]
    assert [len(batch.labels) for batch in batches] == [10, 10, 6]
    assert not torch.cat([batch.flips for batch in batches]).any()
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in batches]), reader.labels)
    assert torch.equal(batches[-1].images[-1], transform(rgb(reader.read(25))).permute(2, 0, 1))


# ----------------------------------------------------------------------------------------------------- bad images


@pytest.fixture
def grays(tmp_path: Path) -> Reader:
    """Eight images of two classes, each in one gray: 0, 30, 60. The fourth is a text."""
    for number in range(8):
        path = tmp_path / "train" / f"class_{number // 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number * 30,) * 3).save(path)
    (tmp_path / "train" / "class_0" / "3.jpg").write_bytes(b"no image")
    return open_reader(tmp_path, "train")


def test_an_evaluation_records_every_unreadable_image(grays: Reader, tmp_path: Path):
    """Bad images are black, and the other images are unchanged. One file is no image, and one file was removed."""
    source = EvaluationImages(grays, ResizeCenterCrop(16, 0.875, "bilinear"), decoding=Decoding(10**6))
    (tmp_path / "train" / "class_1" / "6.jpg").unlink()
    batch = source.make(next(evaluation_keys(8, 8, 0, 1)))
    assert [index for index, _ in batch.unreadable] == [3, 6]
    assert all(f"train/class_{index // 4}/{index}.jpg" in message for index, message in batch.unreadable)
    expected = [0 if number in (3, 6) else 30 * number for number in range(8)]
    assert [int(image.double().mean().round()) for image in batch.images] == expected
    assert not batch.images[[3, 6]].any()


def test_a_storage_that_does_not_answer_is_not_waited_for_image_by_image(grays: Reader, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("seresnext.data.batches._SLOW_FAILURE", -1.0)
    (tmp_path / "train" / "class_0" / "3.jpg").unlink()
    for source in (
        EvaluationImages(grays, ResizeCenterCrop(16, 0.875, "bilinear"), decoding=Decoding(10**6)),
        TrainImages(grays, AUGMENT, 16, seed=0, decoding=Decoding(10**6), substitutes=True),
    ):
        with pytest.raises(DataError, match=r"train/class_0/3.jpg cannot be read: No such file"):
            source.make(next(evaluation_keys(8, 8, 0, 1)))


def test_a_bad_image_is_replaced_by_the_same_image_on_all_ranks(grays: Reader):
    source = TrainImages(grays, AUGMENT, 16, seed=0, decoding=Decoding(10**6), substitutes=True)
    seen, replacements = [], []
    for epoch in range(6):
        (whole,) = (source.make(key) for key in train_keys(Order(8, 8, 8, seed=0), range(1), epoch, epoch + 1))
        parts = [source.make(key) for key in train_keys(Order(8, 8, 2, seed=0), range(4), epoch, epoch + 1)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        (replaced,) = whole.replaced
        assert [replaced] == [one for part in parts for one in part.replaced]
        place = whole.indices.tolist().index(3)
        assert int(whole.labels[place]) == 0
        replacements.append(replaced.replacement)
        seen.append(round(float(whole.images[place].double().mean())))
    assert set(replacements) <= {f"train/class_0/{number}.jpg" for number in range(3)}
    assert len(set(replacements)) > 1
    assert seen == [30 * int(Path(name).stem) for name in replacements]


@pytest.fixture
def copied(tiny_image_folder, tmp_path: Path) -> Reader:
    """Three classes of 8 images, of this test's own."""
    return open_reader(shutil.copytree(tiny_image_folder(), tmp_path / "data"), "train")


def make(reader: Reader, indices: Sequence[int], fast: bool, substitutes: bool = True, epoch: int = 0) -> Batch:
    source = TrainImages(reader, AUGMENT, 16, seed=0, decoding=Decoding(10**6), substitutes=substitutes, fast=fast)
    return source.make(BatchKey(0, 0, epoch, np.array(indices)))


BAD = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "undecodable": lambda path: path.write_bytes(b"no image" * 50),
    "deleted": lambda path: path.unlink(),
}


def spoil(kind: str, reader: Reader, *indices: int) -> None:
    for index in indices:
        BAD[kind](reader._folder.parent / reader.name(index))  # type: ignore[attr-defined]


@pytest.mark.parametrize("fast", DECODERS)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_replaced_by_one_of_its_class(copied: Reader, kind: str, fast: bool):
    before = make(copied, range(24), fast)
    spoil(kind, copied, 9)
    with pytest.raises(DataError, match=rf"{copied.name(9)}.*data\.on_error=substitute"):
        make(copied, range(24), fast, substitutes=False)
    after = make(copied, range(24), fast)
    others = [index for index in range(24) if index != 9]
    assert torch.equal(after.images[others], before.images[others])
    (replaced,) = after.replaced
    assert replaced.image == 9
    assert copied.name(9) in replaced.reason
    other = [copied.name(index) for index in range(24)].index(replaced.replacement)
    assert other != 9
    assert copied.labels[other] == copied.labels[9] == int(after.labels[9])
    # The crop of the bad image, cut from the other image.
    image, expected = rgb(copied.read(other)), torch.empty((16, 16, 3), dtype=torch.uint8)
    left, top, width, height, _ = random_resized_crop(AUGMENT, *image.size, rng_at(0, "augment", 0, 9, 0))
    resize_into(expected, np.array(image.crop((left, top, left + width, top + height))), "bilinear")
    assert torch.equal(after.images[9], expected.permute(2, 0, 1))
    assert len({make(copied, [9], fast, epoch=epoch).replaced for epoch in range(9)}) > 2


@pytest.mark.parametrize("fast", DECODERS)
def test_replacements_that_are_bad_too_are_skipped(copied: Reader, fast: bool):
    spoil("empty", copied, *(index for index in range(8, 16) if index != 12))
    assert [one.replacement for one in make(copied, [8, 9, 10], fast).replaced] == [copied.name(12)] * 3
    spoil("empty", copied, 12)
    with pytest.raises(DataError, match=f"{copied.name(9)} is empty.*no image of the class"):
        make(copied, [9], fast)
