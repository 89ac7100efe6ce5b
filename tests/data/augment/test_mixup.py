import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from seresnext.data.augment.mixup import MixupCutmix, beta, cut_mix
from seresnext.randomness import rng_at

IMAGES = torch.rand(6, 3, 17, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 4, 4])


def mix(
    images: Tensor = IMAGES, step: int = 0, replica: int = 0, *, mixup: float = 0, cutmix: float = 0, **more: int
) -> tuple[Tensor, Tensor]:
    settings = {"seed": 0, "last_step": None, **more}
    mixed = MixupCutmix(num_classes=5, mixup=mixup, cutmix=cutmix, **settings)  # type: ignore[arg-type]
    return mixed(images, LABELS[: len(images)], step=step, replica=replica)


def test_mixup_equals_timm_with_the_same_share():
    timm_mixup = pytest.importorskip("timm.data.mixup")
    for step in range(5):
        images, targets = mix(step=step, mixup=0.4)
        share = targets[0, 0].item()
        expected = timm_mixup.mixup_target(LABELS, 5, share, smoothing=0.0).double()
        torch.testing.assert_close(targets, expected, rtol=0, atol=1e-7)  # timm's are float32.
        torch.testing.assert_close(images, IMAGES * share + IMAGES.flip(0) * (1 - share), rtol=0, atol=1e-15)


def test_cutmix_equals_torchvision_with_the_same_share_and_centre(monkeypatch: pytest.MonkeyPatch):
    # timm makes boxes of an odd size one pixel larger than the code of the paper's authors, which torchvision follows.
    # torchvision pairs each image with the previous one, timm and this project with the image at the same position of
    # the reversed batch. For two images, the pairs are equal.
    images, oracle = IMAGES[:2], v2.CutMix(alpha=1.0, num_classes=5)
    for number in range(200):
        share = number / 199
        mixed, kept = cut_mix(images, share, rng_at(0, number))
        draws = rng_at(0, number)
        row, column = draws.randint(17), draws.randint(23)
        centre, fixed = iter([column, row]), torch.tensor(share, dtype=torch.float64)
        with monkeypatch.context() as patch:
            patch.setattr(oracle, "_dist", SimpleNamespace(sample=lambda _, fixed=fixed: fixed))
            patch.setattr(torch, "randint", lambda *_, size, centre=centre: torch.full(size, next(centre)))
            params = oracle.make_params([images])
        assert torch.equal(mixed, oracle.transform(images, {**params, "labels": LABELS[:2], "batch_size": 2}))
        assert kept == pytest.approx(params["lam_adjusted"], abs=1e-12)


def test_targets_of_cutmix_are_the_shares_of_pixels():
    for step in range(20):
        images, targets = mix(step=step, cutmix=1.0)
        own = (images[0] == IMAGES[0]).all(0).double().mean().item()
        assert targets[0, 0].item() == pytest.approx(own, abs=1e-12)
        torch.testing.assert_close(targets.sum(1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_channels_last_stays_and_images_given_are_left_alone(settings: dict[str, float]):
    images, before = IMAGES.contiguous(memory_format=torch.channels_last), IMAGES.clone()
    assert mix(images, **settings)[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_a_mix_belongs_to_its_step_and_replica():
    def share(step: int, replica: int, seed: int) -> float:
        return mix(IMAGES, step, replica, mixup=1.0, seed=seed)[1][0, 0].item()

    places = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]
    shares = [share(*place) for place in places]
    assert len(set(shares)) == 4
    assert shares == [share(*place) for place in places]


def test_with_both_each_is_taken_half_of_the_time():
    pixels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    mixed = [mix(pixels, step, mixup=1.0, cutmix=1.0)[0] for step in range(600)]
    assert abs(sum(bool((images == images.round()).all()) for images in mixed) / 600 - 0.5) < 0.06


def test_mixing_ends_at_its_step():
    images, targets = mix(step=2, mixup=1.0, last_step=3)
    assert targets.shape == (6, 5)
    assert not torch.equal(images, IMAGES)
    images, targets = mix(step=3, mixup=1.0, last_step=3)
    assert images is IMAGES
    assert torch.equal(targets, LABELS)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 2.5])
def test_shares_follow_the_beta_distribution(alpha: float):
    count = 4000
    ours = np.sort([beta(rng_at(0, "mix", n), alpha) for n in range(count)])

    def distance(other: float) -> float:
        """Kolmogorov's and Smirnov's, from ours to a large sample of Beta(other, other)."""
        reference = np.sort(np.random.default_rng(1).beta(other, other, 50 * count))
        return float(np.abs(np.searchsorted(reference, ours) / len(reference) - np.arange(count) / count).max())

    limit = 1.95 / math.sqrt(count)  # Passed by chance once in a thousand times.
    assert distance(alpha) < limit < distance(1.3 * alpha)
    assert 0 <= ours[0] <= ours[-1] <= 1


def test_a_tiny_alpha_gives_no_nan():
    shares = [beta(rng_at(0, n), 1e-3) for n in range(500)]
    assert all(0 <= share <= 1 for share in shares)
    assert 0.4 < np.mean(shares) < 0.6
