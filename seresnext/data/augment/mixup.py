"""Mixup and CutMix: mix pairs of images of a micro-batch, on the device."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from seresnext.randomness import RandomStream, rng_at
from seresnext.recipe.schema import Recipe


@dataclass(frozen=True)
class MixupCutmix:
    """Mixup (Zhang et al. 2018) with Beta(mixup, mixup), CutMix (Yun et al. 2019) with Beta(cutmix, cutmix), or either.

    With both, each micro-batch uses one of them with probability 1/2. Each image is mixed with the image at the same
    position of the reversed micro-batch. Mixing ends before step `last_step` (None: never).
    """

    num_classes: int
    seed: int
    mixup: float
    cutmix: float
    last_step: int | None

    def __call__(self, images: Tensor, labels: Tensor, *, step: int, replica: int) -> tuple[Tensor, Tensor]:
        """Return mixed images N C H W and soft targets N K; after `last_step`, the arguments."""
        if self.last_step is not None and step >= self.last_step:
            return images, labels
        draws = rng_at(self.seed, "mix", step, replica)
        use_cutmix = bool(self.cutmix) and (not self.mixup or draws.bernoulli(0.5))
        share = beta(draws, self.cutmix if use_cutmix else self.mixup)
        if use_cutmix:
            images, share = cut_mix(images, share, draws)
        else:
            images = images.lerp(images.flip(0), 1 - share)
        own = F.one_hot(labels, self.num_classes).to(images.dtype)
        return images, own.lerp(own.flip(0), 1 - share)


def cut_mix(images: Tensor, share: float, draws: RandomStream) -> tuple[Tensor, float]:
    """Return images (N C H W) with a box from the reversed batch, and the share of pixels outside of the box.

    The box has the images' shape, `1 - share` of the area and a random centre (Yun et al. 2019, eq. 2, algorithm A1).
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    y, x = draws.randint(height), draws.randint(width)
    top, bottom = max(0, y - box_height // 2), min(height, y + box_height // 2)
    left, right = max(0, x - box_width // 2), min(width, x + box_width // 2)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def beta(draws: RandomStream, alpha: float) -> float:
    """Return a draw from Beta(alpha, alpha): the ratio of two gamma draws, by logarithms, as small alphas underflow."""
    one, other = _log_gamma(draws, alpha), _log_gamma(draws, alpha)
    return 1 / (1 + math.exp(min(other - one, 700.0)))


def _log_gamma(draws: RandomStream, alpha: float) -> float:
    """Return the logarithm of a draw from Gamma(alpha, 1) (Marsaglia and Tsang 2000, with the boost for alpha < 1)."""
    if alpha < 1:
        return _log_gamma(draws, alpha + 1) + math.log(1 - draws.random()) / alpha
    d = alpha - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        normal = math.sqrt(-2 * math.log(1 - draws.random())) * math.cos(2 * math.pi * draws.random())  # Box-Muller
        v = (1 + c * normal) ** 3
        if v > 0 and math.log(1 - draws.random()) < normal**2 / 2 + d - d * v + d * math.log(v):
            return math.log(d * v)


def build_mixup_cutmix(recipe: Recipe, steps_per_epoch: int) -> MixupCutmix | None:
    """Return mixup and CutMix of a recipe, or None for a recipe without."""
    mix = recipe.mix
    if not mix.mixup and not mix.cutmix:
        return None
    last = mix.off_after.steps(steps_per_epoch) if mix.off_after else None
    return MixupCutmix(recipe.model.num_classes, recipe.runtime.seed, mix.mixup, mix.cutmix, last)
