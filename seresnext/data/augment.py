"""What happens to an image between decoding and the batch: random crop and flip in training, centre crop otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seresnext.randomness import Draws

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_CROP_ATTEMPTS = 10


class Crop(NamedTuple):
    """A rectangle of an image, in pixels, and whether it is mirrored afterwards."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop (Szegedy et al. 2015, section 6) and horizontal flip, drawn at an address of its own.

    `crop_scale` is the range of the crop's area by the image's, `crop_ratio` that of its width by its height.
    """

    image_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: float
    interpolation: str

    def draw(self, width: int, height: int, draws: Draws) -> Crop:
        """Where to crop, and whether to flip. The algorithm is that of torchvision's RandomResizedCrop."""
        flip = draws.chance(self.flip)
        low, high = (math.log(ratio) for ratio in self.crop_ratio)
        for _ in range(_CROP_ATTEMPTS):
            area = width * height * draws.uniform(*self.crop_scale)
            ratio = math.exp(draws.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Crop(draws.integer(width - w + 1), draws.integer(height - h + 1), w, h, flip)
        # An image too long for its shape to fit: as much of the middle as the range of ratios allows.
        w, h = width, height
        if width / height < self.crop_ratio[0]:
            h = round(width / self.crop_ratio[0])
        elif width / height > self.crop_ratio[1]:
            w = round(height * self.crop_ratio[1])
        return Crop((width - w) // 2, (height - h) // 2, w, h, flip)


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize of the shorter side, then a centre crop, by Pillow: the pixels that published accuracies were measured on.

    The shorter side becomes `floor(image_size / crop_pct)`, as in timm's evaluation.
    """

    image_size: int
    crop_pct: float
    interpolation: str

    def __call__(self, image: Image.Image) -> Tensor:
        """The centre crop of an image, uint8 H W C. Where the image ends before the crop does, it is black."""
        width, height = image.size
        short = math.floor(self.image_size / self.crop_pct)
        shorter = min(width, height)
        size = (int(short * width / shorter), int(short * height / shorter))
        if size != image.size:
            image = image.resize(size, _FILTERS[self.interpolation])
        left, top = (round((side - self.image_size) / 2) for side in image.size)
        box = (left, top, left + self.image_size, top + self.image_size)
        return torch.from_numpy(np.array(image.crop(box)))
