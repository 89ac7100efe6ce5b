import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from seresnext.data.augment.crop import RandomResizedCrop, ResizeCenterCrop, resize_into
from seresnext.randomness import rng_at

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(width: int, height: int) -> Image.Image:
    """Noise on a gradient: hard edges everywhere, the worst case of a resize."""
    rng = np.random.default_rng([width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def train_transform(**changed: object) -> RandomResizedCrop:
    usual = {
        "image_size": 32,
        "crop_scale": (0.08, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "interpolation": "bilinear",
    }
    return RandomResizedCrop(**{**usual, **changed})  # type: ignore[arg-type]


class Replay:
    """Draws that give a fixed row of uniform numbers, to feed the same ones to torchvision."""

    def __init__(self, values: list[float]) -> None:
        self._values = iter(values)

    def random(self) -> float:
        return next(self._values)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def randint(self, count: int) -> int:
        return int(self.random() * count)

    def bernoulli(self, probability: float) -> bool:
        return self.random() < probability


def test_crops_equal_torchvision_from_the_same_uniform_numbers(monkeypatch: pytest.MonkeyPatch):
    transform = train_transform()
    rng = np.random.default_rng(0)
    fallbacks = 0
    for width, height in [(500, 375), (31, 400), (400, 31), (64, 64), (1, 9), (3000, 2000)] * 20:
        values = rng.random(40).tolist()
        crop = transform.draw(width, height, Replay([0.0, *values]))  # type: ignore[arg-type]
        replay = Replay(values)

        def uniform_(tensor: torch.Tensor, low: float, high: float, replay: Replay = replay) -> torch.Tensor:
            return tensor.fill_(replay.uniform(float(low), float(high)))

        def randint(low: int, high: int, size: object, replay: Replay = replay) -> torch.Tensor:
            assert low == 0
            return torch.tensor([replay.randint(high)])

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "uniform_", uniform_)
            patch.setattr(torch, "randint", randint)
            image = Image.new("L", (width, height))
            # torchvision draws the row before the column, ours the column before the row.
            top, left, h, w = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        assert (crop.width, crop.height) == (w, h)
        middle = ((height - h) // 2, (width - w) // 2)
        if (crop.top, crop.left) == middle == (top, left):
            fallbacks += 1
        else:
            assert crop.left <= width - w
            assert crop.top <= height - h
    assert 20 <= fallbacks < 100


def test_crops_spread_over_the_image_and_the_ranges():
    transform = train_transform()
    crops = [transform.draw(400, 300, rng_at(1, "augment", 0, n, 0)) for n in range(3000)]
    areas = np.array([c.width * c.height / 120_000 for c in crops])
    ratios = np.array([c.width / c.height for c in crops])
    assert 0.079 < areas.min() < 0.09
    assert areas.max() > 0.95
    assert 0.74 < ratios.min() < 0.76
    assert 1.31 < ratios.max() < 1.35
    # Uniform in the logarithm, where no crop is refused for standing out of the image.
    assert abs(np.median(ratios[areas < 0.4]) - 1) < 0.03
    assert all(0 <= c.left <= 400 - c.width and 0 <= c.top <= 300 - c.height for c in crops)
    for places in (
        [c.left / (400 - c.width) for c in crops if c.width < 380],
        [c.top / (300 - c.height) for c in crops if c.height < 280],
    ):
        np.testing.assert_allclose(np.histogram(places, 4, (0, 1))[0] / len(places), 0.25, atol=0.03)
    assert abs(np.mean([c.flip for c in crops]) - 0.5) < 0.03


def test_a_flip_is_always_or_never_drawn_at_1_and_0():
    for probability in (0.0, 1.0):
        transform = train_transform(flip=probability)
        assert {transform.draw(40, 30, rng_at(0, n)).flip for n in range(50)} == {bool(probability)}


def test_the_same_address_is_the_same_crop_and_another_copy_is_not():
    transform = train_transform()
    one, again, copy, epoch = (
        transform.draw(400, 300, rng_at(0, "augment", *where)) for where in [(0, 7, 0), (0, 7, 0), (0, 7, 1), (1, 7, 0)]
    )
    assert one == again
    assert len({one, copy, epoch}) == 3


SIZES = [(500, 375), (375, 500), (101, 57), (57, 101), (33, 32), (32, 32), (36, 36), (9, 20), (20, 9), (1, 5)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("image_size", "crop_pct"), [(32, 0.875), (31, 0.9), (32, 1.0), (33, 0.7)])
def test_evaluation_pixels_equal_torchvision(image_size: int, crop_pct: float, interpolation: str):
    oracle = transforms.Compose(
        [
            transforms.Resize(math.floor(image_size / crop_pct), InterpolationMode(interpolation)),
            transforms.CenterCrop(image_size),
        ]
    )
    transform = ResizeCenterCrop(image_size, crop_pct, interpolation)
    for size in SIZES:
        image = noise(*size)
        np.testing.assert_array_equal(transform(image).numpy(), np.asarray(oracle(image)), err_msg=str(size))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_pixels_of_photographs_equal_timm(photographs: list[bytes], interpolation: str):
    create_transform = pytest.importorskip("timm.data").create_transform
    oracle = create_transform(224, interpolation=interpolation, crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    transform = ResizeCenterCrop(224, 0.875, interpolation)
    for data in photographs:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        expected = (oracle(image) * 255).round().to(torch.uint8).permute(1, 2, 0)
        assert torch.equal(transform(image), expected)


def test_bilinear_and_bicubic_are_not_the_same():
    image = noise(50, 40)
    one, other = (ResizeCenterCrop(32, 0.875, name)(image) for name in FILTERS)
    assert not torch.equal(one, other)


# ------------------------------------------------------------------------------------------- the resize of training

# Largest difference from Pillow in training, in levels of 255.
TOLERANCE = {"bilinear": 2, "bicubic": 10}


def noisy_pixels(width: int, height: int) -> np.ndarray:
    """Noise: hard edges everywhere, the worst case of a resize."""
    return np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    out = torch.empty((size, size, 3), dtype=torch.uint8)
    resize_into(out, pixels, interpolation)
    return out.numpy().astype(np.int16)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_photograph_is_close_to_pillows(photographs: list[bytes], interpolation: str):
    for data in photographs:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = resized(np.array(image), 96, interpolation)
        expected = np.asarray(image.resize((96, 96), FILTERS[interpolation]), np.int16)
        assert np.abs(pixels - expected).max() <= TOLERANCE[interpolation]
        # The control: the image shifted by one pixel differs.
        beside = image.crop((1, 1, *image.size)).resize((96, 96), FILTERS[interpolation])
        assert np.abs(pixels - np.asarray(beside, np.int16)).max() > TOLERANCE[interpolation]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (300, 200), (20, 31), (1, 1), (1, 50)])
def test_noise_is_close_to_pillows_and_equal_to_interpolate(size: tuple[int, int], interpolation: str):
    pixels = noisy_pixels(*size)
    result = resized(pixels, 32, interpolation)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), FILTERS[interpolation]), np.int16)
    assert np.abs(result - expected).max() <= TOLERANCE[interpolation]
    tensor = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    oracle = functional.interpolate(tensor, (32, 32), mode=interpolation, antialias=True, align_corners=False)
    np.testing.assert_array_equal(result, oracle[0].permute(1, 2, 0).numpy())


def test_a_resize_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resized(noisy_pixels(24, 24), 24, "bilinear"), noisy_pixels(24, 24))


def test_only_the_own_place_in_a_batch_is_written():
    batch = torch.full((3, 16, 16, 3), 7, dtype=torch.uint8)
    resize_into(batch[1], noisy_pixels(40, 30), "bicubic")
    assert (batch[[0, 2]] == 7).all()
    np.testing.assert_array_equal(batch[1].numpy(), resized(noisy_pixels(40, 30), 16, "bicubic"))
