import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from seresnext.data.augment.mixup import MixupCutmix, beta, cut_mix
from seresnext.randomness import rng_at

IMAGES = torch.rand(6, 3, 17, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 4, 4])


def mix(**changed: object) -> MixupCutmix:
    usual = {"num_classes": 5, "seed": 0, "mixup": 0.0, "cutmix": 0.0, "last_step": None}
    return MixupCutmix(**{**usual, **changed})  # type: ignore[arg-type]


def share_of(targets: Tensor) -> float:
    """Return the share of the first image, from the target."""
    return targets[0, 0].item()


def test_mixup_equals_timm_with_the_same_share():
    timm_mixup = pytest.importorskip("timm.data.mixup")
    for step in range(5):
        images, targets = mix(mixup=0.4)(IMAGES, LABELS, step=step, replica=1)
        share = share_of(targets)
        expected = timm_mixup.mixup_target(LABELS, 5, share, smoothing=0.0).double()
        torch.testing.assert_close(targets, expected, rtol=0, atol=1e-7)  # timm's are float32.
        torch.testing.assert_close(images, IMAGES * share + IMAGES.flip(0) * (1 - share), rtol=0, atol=1e-15)


def test_mixup_equals_torchvision_with_the_same_share():
    # For two images, torchvision makes the same pairs.
    images, labels, oracle = IMAGES[:2], LABELS[:2], v2.MixUp(alpha=0.4, num_classes=5)
    for step in range(20):
        mixed, targets = mix(mixup=0.4)(images, labels, step=step, replica=1)
        params = {"lam": share_of(targets), "labels": labels, "batch_size": 2}
        torch.testing.assert_close(mixed, oracle.transform(images, params), rtol=0, atol=1e-15)
        # torchvision's targets are in single precision.
        torch.testing.assert_close(targets, oracle.transform(labels, params).double(), rtol=0, atol=1e-7)


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
        centre = iter([column, row])
        with monkeypatch.context() as patch:
            patch.setattr(oracle, "_dist", FixedShare(share))
            patch.setattr(torch, "randint", lambda *_, size, centre=centre: torch.full(size, next(centre)))
            params = oracle.make_params([images])
        assert torch.equal(mixed, oracle.transform(images, {**params, "labels": LABELS[:2], "batch_size": 2}))
        assert kept == pytest.approx(params["lam_adjusted"], abs=1e-12)


class FixedShare:
    """A distribution for torchvision with one value, in double precision."""

    def __init__(self, share: float) -> None:
        self._share = share

    def sample(self, _: object) -> Tensor:
        return torch.tensor(self._share, dtype=torch.float64)


def test_targets_of_cutmix_are_the_shares_of_pixels():
    for step in range(20):
        images, targets = mix(cutmix=1.0)(IMAGES, LABELS, step=step, replica=0)
        own = (images[0] == IMAGES[0]).all(0).double().mean().item()
        assert share_of(targets) == pytest.approx(own, abs=1e-12)
        torch.testing.assert_close(targets.sum(1), torch.ones(6, dtype=torch.float64))


def test_images_given_are_left_alone():
    for settings in ({"mixup": 0.4}, {"cutmix": 1.0}):
        before = IMAGES.clone()
        mix(**settings)(IMAGES, LABELS, step=0, replica=0)
        assert torch.equal(IMAGES, before)


def test_channels_last_stays():
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    for settings in ({"mixup": 0.4}, {"cutmix": 1.0}):
        mixed, _ = mix(**settings)(images, LABELS, step=0, replica=0)
        assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_a_mix_belongs_to_its_step_and_replica():
    one = mix(mixup=1.0)
    shares = {where: share_of(one(IMAGES, LABELS, step=where[0], replica=where[1])[1]) for where in [(0, 0), (0, 1)]}
    shares[1, 0] = share_of(one(IMAGES, LABELS, step=1, replica=0)[1])
    shares["seed"] = share_of(mix(mixup=1.0, seed=1)(IMAGES, LABELS, step=0, replica=0)[1])
    assert len(set(shares.values())) == 4
    assert share_of(one(IMAGES, LABELS, step=0, replica=1)[1]) == shares[0, 1]


def test_torchs_own_randomness_is_not_touched():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    mix(mixup=1.0, cutmix=1.0)(IMAGES, LABELS, step=0, replica=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_with_both_each_is_taken_half_of_the_time():
    both = mix(mixup=1.0, cutmix=1.0)
    pixels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    cut = 0
    for step in range(600):
        images, _ = both(pixels, LABELS, step=step, replica=0)
        cut += bool((images == images.round()).all())
    assert abs(cut / 600 - 0.5) < 0.06


def test_mixing_ends_at_its_step():
    until = mix(mixup=1.0, last_step=3)
    images, targets = until(IMAGES, LABELS, step=2, replica=0)
    assert targets.shape == (6, 5)
    assert not torch.equal(images, IMAGES)
    images, targets = until(IMAGES, LABELS, step=3, replica=0)
    assert images is IMAGES
    assert targets is LABELS


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 2.5])
def test_shares_follow_the_beta_distribution(alpha: float):
    count = 4000
    ours = np.sort([beta(rng_at(0, "mix", n), alpha) for n in range(count)])
    theirs = np.sort(np.random.default_rng(1).beta(alpha, alpha, 50 * count))

    def distance(reference: np.ndarray) -> float:
        """Kolmogorov's and Smirnov's, from ours to a large sample."""
        return float(np.abs(np.searchsorted(reference, ours) / len(reference) - np.arange(count) / count).max())

    limit = 1.95 / math.sqrt(count)  # Passed by chance once in a thousand times.
    assert distance(theirs) < limit
    assert distance(np.sort(np.random.default_rng(1).beta(1.3 * alpha, 1.3 * alpha, 50 * count))) > limit
    assert 0 <= ours[0] <= ours[-1] <= 1


def test_a_tiny_alpha_gives_no_nan():
    shares = [beta(rng_at(0, n), 1e-3) for n in range(500)]
    assert all(0 <= share <= 1 for share in shares)
    assert 0.4 < np.mean(shares) < 0.6
