import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from seresnext.data.augment.erase import EraseFill, draw_box, erase
from seresnext.recipe.schema import ErasingSection

IMAGES = torch.rand(5, 3, 17, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BOXES = [(0, 0, 0, 0), (3, 4, 5, 6), (0, 0, 17, 23), (16, 22, 1, 1), (2, 0, 9, 1)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("noise", [False, True])
def test_pixels_equal_torchvision_with_the_same_boxes(noise: bool, channels_last: bool):
    images = IMAGES.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    fill = torch.randn(IMAGES.shape, generator=torch.Generator(), dtype=torch.float64) if noise else torch.tensor(0.7)
    before = images.clone()
    erased = erase(images, torch.tensor(BOXES), fill.double())
    assert torch.equal(images, before)
    for image, own, (top, left, height, width), result in zip(
        images, fill.double().expand(IMAGES.shape), BOXES, erased, strict=True
    ):
        value = own[:, top : top + height, left : left + width]
        assert torch.equal(result, v2.functional.erase(image, top, left, height, width, value))
    assert torch.equal(erased[0], images[0])
    assert not torch.equal(erased[1], images[1])


@pytest.mark.parametrize("scale", [(0.02, 0.33), (0.5, 1.0)])
def test_boxes_equal_torchvision_from_the_same_uniform_numbers(scale: tuple[float, float], replay, torchvision_draws):
    always = ErasingSection(probability=1, scale=scale, ratio=(0.3, 3.3))
    oracle = v2.RandomErasing(p=1.0, scale=scale, ratio=(0.3, 3.3))
    rng, retried, nothing = np.random.default_rng(0), 0, 0
    for height, width in [(224, 224), (64, 64), (17, 23), (32, 160)] * 50:
        values, image = rng.random(40).tolist(), torch.zeros(3, height, width)
        ours, stream = draw_box(always, height, width, replay([0.5, *values])), replay(values)
        params = torchvision_draws(stream, lambda image=image: oracle.make_params([image]))
        retried += stream.taken > 4
        nothing += params["v"] is None
        assert ours == ((0, 0, 0, 0) if params["v"] is None else tuple(params[side] for side in "ijhw"))
    assert retried > 5
    assert nothing < 100


def test_noise_belongs_to_its_step_and_replica_and_is_normal():
    images = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    one, again, step, replica, seed = (
        EraseFill("random", seed).like(images, torch.float32, *where)
        for seed, where in [(3, (0, 0)), (3, (0, 0)), (3, (1, 0)), (3, (0, 1)), (4, (0, 0))]
    )
    assert torch.equal(one, again)
    assert not any(torch.equal(one, other) for other in (step, replica, seed))
    assert one.dtype == torch.float32
    assert abs(one.mean().item()) < 0.02
    assert abs(one.std().item() - 1) < 0.02


def test_a_number_fills_all_channels():
    fill = EraseFill(-1.5, seed=0).like(IMAGES, torch.float64, 0, 0)
    assert (erase(IMAGES, torch.tensor(BOXES), fill)[2] == -1.5).all()
