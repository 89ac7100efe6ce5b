"""Random erasing (Zhong et al. 2020): overwrite a box of a normalised image, on the device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seresnext.randomness import RandomStream, torch_seed_at
from seresnext.recipe.schema import ErasingSection, Recipe

_ATTEMPTS = 10


def draw_box(erasing: ErasingSection, height: int, width: int, draws: RandomStream) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the box to erase, or zeros. The algorithm is torchvision's."""
    if not draws.bernoulli(erasing.probability):
        return 0, 0, 0, 0
    low, high = (math.log(ratio) for ratio in erasing.ratio)
    for _ in range(_ATTEMPTS):
        area = height * width * draws.uniform(*erasing.scale)
        ratio = math.exp(draws.uniform(low, high))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            return draws.randint(height - h + 1), draws.randint(width - w + 1), h, w
    return 0, 0, 0, 0


@dataclass(frozen=True)
class EraseFill:
    """The new content of erased boxes: a number in units of normalised pixels, or normal noise for `random`.

    The noise of a micro-batch is drawn on the device at the address (seed, "erase", step, replica).
    """

    value: float | str
    seed: int

    def like(self, images: Tensor, dtype: torch.dtype, step: int, replica: int) -> Tensor:
        """Return the fill for images (N C H W), as `erase` takes it."""
        if self.value != "random":
            return torch.full((), float(self.value), dtype=dtype, device=images.device)
        generator = torch.Generator(images.device).manual_seed(torch_seed_at(self.seed, "erase", step, replica))
        return torch.randn(images.shape, generator=generator, dtype=dtype, device=images.device)


def erase(images: Tensor, boxes: Tensor, value: Tensor) -> Tensor:
    """Return images (N C H W) with boxes (int N 4: top, left, height, width) overwritten by `value`.

    `value` has any shape that broadcasts to the images. The function never waits for the device, and can be compiled.
    """
    top, left, height, width = boxes.view(-1, 4, 1).unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return torch.where((in_rows[:, :, None] & in_columns[:, None, :])[:, None], value, images)


def build_erase_fill(recipe: Recipe) -> EraseFill | None:
    """Return the fill of random erasing, or None for a recipe without erasing."""
    erasing = recipe.augment.erasing
    return EraseFill(erasing.value, recipe.runtime.seed) if erasing else None
