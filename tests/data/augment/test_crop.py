import math
from functools import partial

import numpy as np
import pytest
import torch
from encoded_images import noise, rgb
from PIL import Image
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from seresnext.data.augment.crop import ImageSizeSchedule, ResizeCenterCrop, random_resized_crop, resize_into
from seresnext.randomness import rng_at
from seresnext.recipe.schema import AugmentSection

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
USUAL = AugmentSection(crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5)


def test_crops_equal_torchvision_from_the_same_uniform_numbers(replay, torchvision_draws):
    rng = np.random.default_rng(0)
    fallbacks = 0
    for width, height in [(500, 375), (31, 400), (400, 31), (64, 64), (1, 9), (3000, 2000)] * 20:
        values = rng.random(40).tolist()
        crop = random_resized_crop(USUAL, width, height, replay([0.0, *values]))
        params = partial(transforms.RandomResizedCrop.get_params, Image.new("L", (width, height)))
        # torchvision draws the row before the column, ours the column before the row.
        top, left, h, w = torchvision_draws(replay(values), partial(params, [0.08, 1.0], [3 / 4, 4 / 3]))
        assert (crop.width, crop.height) == (w, h)
        assert 0 <= crop.left <= width - w
        assert 0 <= crop.top <= height - h
        fallbacks += (crop.top, crop.left) == ((height - h) // 2, (width - w) // 2) == (top, left)
    assert 20 <= fallbacks < 100


def test_crops_spread_over_the_image():
    crops = [random_resized_crop(USUAL, 400, 300, rng_at(1, "augment", 0, n, 0)) for n in range(3000)]
    for places in (
        [c.left / (400 - c.width) for c in crops if c.width < 380],
        [c.top / (300 - c.height) for c in crops if c.height < 280],
    ):
        np.testing.assert_allclose(np.histogram(places, 4, (0, 1))[0] / len(places), 0.25, atol=0.03)
    assert abs(np.mean([c.flip for c in crops]) - 0.5) < 0.03


SIZES = [(500, 375), (375, 500), (101, 57), (57, 101), (33, 32), (32, 32), (36, 36), (9, 20), (20, 9), (1, 5)]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("image_size", "crop_pct"), [(32, 0.875), (31, 0.9), (32, 1.0), (33, 0.7)])
def test_evaluation_pixels_equal_torchvision(image_size: int, crop_pct: float, interpolation: str):
    resize = transforms.Resize(math.floor(image_size / crop_pct), InterpolationMode(interpolation))
    oracle = transforms.Compose([resize, transforms.CenterCrop(image_size)])
    transform = ResizeCenterCrop(image_size, crop_pct, interpolation)
    for size in SIZES:
        image = noise(*size)
        np.testing.assert_array_equal(transform(image).numpy(), np.asarray(oracle(image)), err_msg=str(size))


@pytest.mark.parametrize("interpolation", FILTERS)
def test_evaluation_pixels_of_photographs_equal_timm(photographs: list[bytes], interpolation: str):
    create_transform = pytest.importorskip("timm.data").create_transform
    oracle = create_transform(224, interpolation=interpolation, crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    transform = ResizeCenterCrop(224, 0.875, interpolation)
    for image in map(rgb, photographs):
        expected = (oracle(image) * 255).round().to(torch.uint8).permute(1, 2, 0)
        assert torch.equal(transform(image), expected)


# ------------------------------------------------------------------------------------------- the resize of training

# Largest difference from Pillow in training, in levels of 255.
TOLERANCE = {"bilinear": 2, "bicubic": 10}


def resized(image: Image.Image, size: int, interpolation: str) -> np.ndarray:
    batch = torch.full((3, size, size, 3), 7, dtype=torch.uint8)
    resize_into(batch[1], np.array(image), interpolation)
    assert (batch[[0, 2]] == 7).all()  # The neighbours in a batch are left alone.
    return batch[1].numpy().astype(np.int16)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_photograph_is_close_to_pillows(photographs: list[bytes], interpolation: str):
    for image in map(rgb, photographs):
        pixels = resized(image, 96, interpolation)
        # The control: the image shifted by one pixel differs.
        for other, is_close in ((image, True), (image.crop((1, 1, *image.size)), False)):
            expected = np.asarray(other.resize((96, 96), FILTERS[interpolation]), np.int16)
            assert (np.abs(pixels - expected).max() <= TOLERANCE[interpolation]) == is_close


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (300, 200), (20, 31), (1, 1), (1, 50), (32, 32)], ids=str)
def test_noise_is_close_to_pillows_and_equal_to_interpolate(size: tuple[int, int], interpolation: str):
    image = noise(*size)
    result = resized(image, 32, interpolation)
    expected = np.asarray(image.resize((32, 32), FILTERS[interpolation]), np.int16)
    assert np.abs(result - expected).max() <= TOLERANCE[interpolation]
    tensor = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
    oracle = functional.interpolate(tensor, (32, 32), mode=interpolation, antialias=True, align_corners=False)
    np.testing.assert_array_equal(result, oracle[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_turned_view_is_resized_like_the_turned_image(interpolation: str):
    """Bit for bit, for all eight turns and mirrors of many sizes: the kernel treats both axes and directions alike."""
    rng, differ = np.random.default_rng(0), 0
    for number in range(320):
        size = int(rng.choice([17, 32, 64, 96, 224]))
        height, width = (int(side) for side in np.exp(rng.uniform(0, np.log(500), 2)))
        stored = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 3 == 0:
            stored = stored // 128 * 255
        view = stored.transpose(1, 0, 2) if number % 2 else stored
        view = view[:: -1 if number & 2 else 1, :: -1 if number & 4 else 1]
        found, expected, unturned = torch.empty((3, size, size, 3), dtype=torch.uint8)
        resize_into(found, view, interpolation)
        resize_into(expected, np.ascontiguousarray(view), interpolation)
        assert torch.equal(found, expected), (number, size, height, width)
        resize_into(unturned, stored, interpolation)
        differ += not torch.equal(unturned, expected)
    assert differ > 200  # The control.


@pytest.mark.parametrize(("low", "high"), [(160, 192), (128, 224), (32, 512)])
@pytest.mark.parametrize(("start", "end"), [(0, 60), (35, 50), (10, 11)])
def test_sizes_equal_ffcv(low: int, high: int, start: int, end: int):
    for step in range(80):
        # `ImageNetTrainer.get_resolution`, which counts epochs.
        expected = int(np.round(np.interp(step, [start, end], [low, high]) / 32)) * 32
        expected = low if step <= start else high if step >= end else expected
        assert ImageSizeSchedule(low, high, start, end).size_at(step) == expected


def test_sizes_rise_to_the_end_and_are_few():
    sizes = [ImageSizeSchedule(100, 230, 40, 1000).size_at(step) for step in range(1200)]
    assert sizes == sorted(sizes)
    assert sorted(set(sizes)) == [100, 128, 160, 192, 224, 230]
    assert (sizes[0], sizes[40], sizes[999], sizes[1000]) == (100, 100, 224, 230)


def test_a_ramp_without_length_is_a_jump():
    assert [ImageSizeSchedule(64, 128, 3, 3).size_at(step) for step in (0, 2, 3, 4)] == [64, 64, 128, 128]
