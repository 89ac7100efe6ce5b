"""The steps from an image to the input of a network. They belong to the weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.pillow import Decoding, orientation_of, to_rgb, turn
from seresnext.models.registry import MODELS, canonical_name
from seresnext.recipe.schema import Recipe

# Mean and deviation of ImageNet's training pixels by channel, scaled to 0..1. All published weights expect these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image to the network's input: resize, crop, scale to 0..1, subtract `mean`, divide by `std`.

    Before, `exif_rotation` turns an image as EXIF asks, and transparent pixels get the colour `background`, if any.
    The shorter side is resized to `image_size / crop_pct` pixels, and the central square of `image_size` is cut out.
    """

    image_size: int
    crop_pct: float
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif_rotation: bool = False
    background: tuple[int, int, int] | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """Return an image of any size and mode as an input of the network, float32 3 H W."""
        return self.normalise(self.crop_of(image))

    def crop_of(self, image: Image.Image) -> Tensor:
        """Return the pixels of an image that the network sees, uint8 H W 3."""
        with warnings.catch_warnings(action="ignore"):  # Broken EXIF makes Pillow warn.
            pixels = to_rgb(image, self.background)
            return self.crop(turn(pixels, orientation_of(image)) if self.exif_rotation else pixels)

    def decoding(self, max_pixels: int) -> Decoding:
        """Return the decoding of image files of at most `max_pixels` pixels."""
        return Decoding(max_pixels, self.exif_rotation, self.background)

    @property
    def crop(self) -> ResizeCenterCrop:
        """The resize and the crop."""
        return ResizeCenterCrop(self.image_size, self.crop_pct, self.interpolation)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels, uint8 ... H W 3, as inputs of the network, float32 ... 3 H W."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((pixels / 255 - mean) / std).movedim(-1, -3)

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Preprocessing:
        """Return the preprocessing of a run's validation."""
        data, evaluation = recipe.data, recipe.evaluation
        crop = (data.image_size, evaluation.crop_pct, evaluation.interpolation)
        return cls(*crop, data.mean, data.std, data.exif_rotation, data.background)


def published_preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing for a model's published weights (timm's `default_cfgs`). Raise UsageError."""
    row = MODELS[canonical_name(name)]
    return Preprocessing(row.image_size, row.crop_pct, row.interpolation, IMAGENET_MEAN, IMAGENET_STD)
