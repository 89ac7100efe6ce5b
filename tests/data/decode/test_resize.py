import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from seresnext.data.decode.resize import resize_into

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Largest difference from Pillow that the design allows, in levels of 255.
TOLERANCE = {"bilinear": 2, "bicubic": 10}


def noise(width: int, height: int) -> np.ndarray:
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
        # One pixel aside it would not be the same image.
        beside = image.crop((1, 1, *image.size)).resize((96, 96), FILTERS[interpolation])
        assert np.abs(pixels - np.asarray(beside, np.int16)).max() > TOLERANCE[interpolation]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (300, 200), (20, 31), (1, 1), (1, 50)])
def test_noise_is_close_to_pillows_and_equal_to_interpolate(size: tuple[int, int], interpolation: str):
    pixels = noise(*size)
    result = resized(pixels, 32, interpolation)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), FILTERS[interpolation]), np.int16)
    assert np.abs(result - expected).max() <= TOLERANCE[interpolation]
    tensor = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    oracle = functional.interpolate(tensor, (32, 32), mode=interpolation, antialias=True, align_corners=False)
    np.testing.assert_array_equal(result, oracle[0].permute(1, 2, 0).numpy())


def test_a_resize_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resized(noise(24, 24), 24, "bilinear"), noise(24, 24))


def test_only_the_own_place_in_a_batch_is_written():
    batch = torch.full((3, 16, 16, 3), 7, dtype=torch.uint8)
    resize_into(batch[1], noise(40, 30), "bicubic")
    assert (batch[[0, 2]] == 7).all()
    np.testing.assert_array_equal(batch[1].numpy(), resized(noise(40, 30), 16, "bicubic"))
