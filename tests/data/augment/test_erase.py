import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from seresnext.data.augment.erase import EraseBox, EraseFill, RandomErasing, erase
from seresnext.randomness import rng_at

IMAGES = torch.rand(5, 3, 17, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BOXES = [
    EraseBox(0, 0, 0, 0),
    EraseBox(3, 4, 5, 6),
    EraseBox(0, 0, 17, 23),
    EraseBox(16, 22, 1, 1),
    EraseBox(2, 0, 9, 1),
]
USUAL = RandomErasing(0.25, (0.02, 0.33), (0.3, 3.3))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("noise", [False, True])
def test_pixels_equal_torchvision_with_the_same_boxes(noise: bool, channels_last: bool):
    images = IMAGES.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    fill = torch.randn(IMAGES.shape, dtype=torch.float64) if noise else torch.tensor(0.7, dtype=torch.float64)
    erased = erase(images, torch.tensor(BOXES), fill)
    for image, own, (top, left, height, width), result in zip(
        images, fill.expand(IMAGES.shape), BOXES, erased, strict=True
    ):
        value = own[:, top : top + height, left : left + width]
        assert torch.equal(result, v2.functional.erase(image, top, left, height, width, value))
    assert torch.equal(erased[0], images[0])
    assert not torch.equal(erased[1], images[1])


def test_images_given_are_left_alone():
    before = IMAGES.clone()
    erase(IMAGES, torch.tensor(BOXES), torch.zeros(()))
    assert torch.equal(IMAGES, before)


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


@pytest.mark.parametrize("scale", [(0.02, 0.33), (0.5, 1.0)])
def test_boxes_equal_torchvision_from_the_same_uniform_numbers(
    scale: tuple[float, float], monkeypatch: pytest.MonkeyPatch
):
    always = RandomErasing(1.0, scale, (0.3, 3.3))
    oracle = v2.RandomErasing(p=1.0, scale=scale, ratio=(0.3, 3.3))
    rng, retried, nothing = np.random.default_rng(0), 0, 0
    for height, width in [(224, 224), (64, 64), (17, 23), (32, 160)] * 50:
        values = rng.random(40).tolist()
        ours = always.draw(height, width, Replay([0.5, *values]))  # type: ignore[arg-type]
        replay, taken = Replay(values), []

        def uniform_(tensor: Tensor, low: float, high: float, replay: Replay = replay, taken: list = taken) -> Tensor:
            taken.append(None)
            return tensor.double().fill_(replay.uniform(float(low), float(high)))

        def randint(low: int, high: int, size: object, replay: Replay = replay) -> Tensor:
            assert low == 0
            return torch.tensor([replay.randint(high)])

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "uniform_", uniform_)
            patch.setattr(torch, "randint", randint)
            params = oracle.make_params([torch.zeros(3, height, width)])
        retried += len(taken) > 2
        nothing += ours == (0, 0, 0, 0)
        if params["v"] is None:
            assert ours == (0, 0, 0, 0)
        else:
            assert ours == (params["i"], params["j"], params["h"], params["w"])
    assert retried > 5
    assert nothing < 100


def test_boxes_spread_over_the_image_and_the_ranges():
    boxes = [USUAL.draw(200, 200, rng_at(0, "erase", 0, n, 0)) for n in range(8000)]
    drawn = [box for box in boxes if box.height]
    assert abs(len(drawn) / 8000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 8000)
    areas = np.array([box.height * box.width / 40_000 for box in drawn])
    assert 0.018 < areas.min() < 0.03
    assert 0.31 < areas.max() < 0.34
    np.testing.assert_allclose(np.histogram(areas, 4, (0.02, 0.33))[0] / len(areas), 0.25, atol=0.04)
    assert all(0 <= b.top <= 200 - b.height and 0 <= b.left <= 200 - b.width for b in drawn)
    places = [b.top / (200 - b.height) for b in drawn]
    np.testing.assert_allclose(np.histogram(places, 4, (0, 1))[0] / len(places), 0.25, atol=0.04)


def test_a_box_belongs_to_its_address():
    always = RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3))
    one, again, copy = (always.draw(64, 64, rng_at(0, "erase", *where)) for where in [(0, 7, 0), (0, 7, 0), (0, 7, 1)])
    assert one == again != copy


def test_noise_belongs_to_its_step_and_replica_and_is_normal():
    fill = EraseFill("random", seed=3)
    images = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    one, again, step, replica = (fill.like(images, torch.float32, *where) for where in [(0, 0), (0, 0), (1, 0), (0, 1)])
    assert torch.equal(one, again)
    assert not torch.equal(one, step)
    assert not torch.equal(one, replica)
    assert not torch.equal(one, EraseFill("random", seed=4).like(images, torch.float32, 0, 0))
    assert one.dtype == torch.float32
    assert abs(one.mean().item()) < 0.02
    assert abs(one.std().item() - 1) < 0.02


def test_a_number_fills_all_channels():
    fill = EraseFill(-1.5, seed=0).like(IMAGES, torch.float64, 0, 0)
    erased = erase(IMAGES, torch.tensor(BOXES), fill)
    assert (erased[2] == -1.5).all()


def test_torchs_own_randomness_is_not_touched():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    EraseFill("random", 0).like(IMAGES, torch.float32, 0, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
