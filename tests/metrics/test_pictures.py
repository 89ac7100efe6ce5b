"""The picture of the first batch: the pixels before normalisation, in a grid."""

import numpy as np
import pytest
import torch
from PIL import Image

from seresnext.metrics import pictures
from seresnext.metrics.pictures import draw_batch

MEAN, STD = (0.5, 0.25, 0.75), (0.5, 0.25, 0.125)


def normalised(images):
    """Normalise uint8 images N H W C as the device does."""
    mean, std = (np.array(values) for values in (MEAN, STD))
    return torch.from_numpy((images / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.fixture
def texts(monkeypatch):
    texts = []
    monkeypatch.setattr(pictures.ImageDraw.ImageDraw, "text", lambda pen, place, text, *rest: texts.append(text))
    return texts


@pytest.mark.parametrize("count", [1, 10, 40])
def test_each_image_has_its_pixels_and_its_label(tmp_path, texts, count):
    images, names = np.random.default_rng(0).integers(0, 256, (count, 160, 160, 3)), ["cat", "dog\x1b[31m", "x" * 99]
    draw_batch(normalised(images), torch.arange(count) % 3, names, MEAN, STD, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    shown = min(count, 32)
    for number in range(shown):
        top, left = 8 + number // 8 * 204, 8 + number % 8 * 168
        assert np.array_equal(pixels[top : top + 160, left : left + 160], images[number])
    assert len(texts) == shown
    assert texts[:3] == ["cat", r"dog\x1b[31m", "x" * 23 + "..."][:shown]


def test_a_mixed_image_has_the_shares_of_both_labels(tmp_path, texts):
    shares = torch.tensor([[0.3, 0.0, 0.7], [0.0, 1.0, 0.0]])
    draw_batch(torch.zeros(2, 1, 8, 8), shares, ["cat", "dog", "fox"], (0.5,), (0.5,), tmp_path / "a.png")
    assert texts == ["70 % fox\n30 % cat", "100 % dog"]
