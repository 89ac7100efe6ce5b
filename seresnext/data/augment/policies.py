"""What is done to the pixels of a training image after its crop: RandAugment, TrivialAugment, colour jitter.

The operations are Pillow's, and with the same parameters the pixels are bit for bit those of torchvision's functional
operations on Pillow images. The parameters follow torchvision's transforms, drawn at an address of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from seresnext.randomness import RandomStream
from seresnext.recipe.schema import AugmentSection


class Operation(NamedTuple):
    """One operation of `OPERATIONS`. The meaning of the magnitude is the operation's own, 0 where it has none."""

    name: str
    magnitude: float


class Policy(Protocol):
    """Which operations an image goes through: `size` is its side in pixels."""

    def draw(self, size: int, draws: RandomStream) -> list[Operation]: ...


@dataclass(frozen=True)
class PolicyPipeline:
    """The policies of a recipe, one after the other, on an image of a batch.

    Where an operation leaves the image behind empty, it is black. `interpolation` is for shearing and the like.
    """

    policies: tuple[Policy, ...]
    interpolation: str

    def __call__(self, pixels: Tensor, flip: bool, draws: RandomStream) -> Tensor:
        """Mirror an image (uint8 H W C, square) if `flip`, and retouch it.

        The device could not mirror it afterwards: a shear to the left is not one to the right.
        """
        if flip:
            pixels = pixels.flip(1)
        operations = [step for policy in self.policies for step in policy.draw(len(pixels), draws)]
        if all(operation.name == "identity" for operation in operations):
            return pixels
        image = Image.fromarray(pixels.numpy())
        for operation in operations:
            image = apply(image, operation, self.interpolation)
        return torch.from_numpy(np.array(image))


# --------------------------------------------------------------------------------------------------- policies


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al. 2020): `num_ops` operations at even odds, all at one of so many magnitudes.

    The magnitude is 0 to `num_magnitude_bins - 1`, its meaning that of torchvision's RandAugment.
    """

    num_ops: int
    magnitude: int
    num_magnitude_bins: int

    def draw(self, size: int, draws: RandomStream) -> list[Operation]:
        """The operations for an image whose side is `size` pixels."""
        level = self.magnitude / (self.num_magnitude_bins - 1)
        # Of 331 pixels in the paper's code, 150: a share of the side here.
        reach = _Reach(shear=0.3, shift=150 / 331 * size, angle=30, factor=0.9, bits=4)
        return [reach.draw(level, draws) for _ in range(self.num_ops)]


@dataclass(frozen=True)
class TrivialAugment:
    """TrivialAugment in its wide form (Mueller and Hutter 2021): one operation, at any of so many magnitudes."""

    num_magnitude_bins: int

    def draw(self, size: int, draws: RandomStream) -> list[Operation]:
        """The operation for an image."""
        reach = _Reach(shear=0.99, shift=32, angle=135, factor=0.99, bits=6)
        return [reach.draw(draws.randint(self.num_magnitude_bins) / (self.num_magnitude_bins - 1), draws)]


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, each by a factor of its own, in an order of its own.

    A factor is uniform in 1 - x .. 1 + x, not below 0; that of hue in -x .. x, of a turn.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def draw(self, size: int, draws: RandomStream) -> list[Operation]:
        """The operations for an image."""
        operations = [
            Operation(name, draws.uniform(max(0.0, 1 - reach), 1 + reach))
            for name, reach in (
                ("brightness", self.brightness),
                ("contrast", self.contrast),
                ("saturation", self.saturation),
            )
            if reach
        ]
        if self.hue:
            operations.append(Operation("hue", draws.uniform(-self.hue, self.hue)))
        # Every order at even odds (Fisher and Yates).
        for last in range(len(operations) - 1, 0, -1):
            other = draws.randint(last + 1)
            operations[last], operations[other] = operations[other], operations[last]
        return operations


# Drawn by its place in this row.
_CHOICES = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


class _Reach(NamedTuple):
    """The strongest that the operations of a policy get: a shear, a shift in pixels, an angle in degrees, what is
    added to the factor 1 of brightness and its like, and how many of the 8 bits posterizing takes."""

    shear: float
    shift: float
    angle: float
    factor: float
    bits: int

    def draw(self, level: float, draws: RandomStream) -> Operation:
        """One of `_CHOICES` at even odds, at a level of 0 to 1, to either side where it has two."""
        name = _CHOICES[draws.randint(len(_CHOICES))]
        sign = -1 if draws.bernoulli(0.5) else 1
        match name:
            case "shear_x" | "shear_y":
                return Operation(name, math.degrees(math.atan(sign * self.shear * level)))
            case "translate_x" | "translate_y":
                # Towards 0, to whole pixels; 31.999999 is meant to be 32.
                return Operation(name, sign * int(self.shift * level + 1e-6))
            case "rotate":
                return Operation(name, sign * self.angle * level)
            case "brightness" | "saturation" | "contrast" | "sharpness":
                return Operation(name, 1 + sign * self.factor * level)
            case "posterize":
                return Operation(name, round(8 - self.bits * level))
            case "solarize":
                return Operation(name, 255 * (1 - level))
        return Operation(name, 0)


# ------------------------------------------------------------------------------------------------- operations


def apply(image: Image.Image, operation: Operation, interpolation: str) -> Image.Image:
    """An RGB image after one operation, of the same size."""
    return OPERATIONS[operation.name](image, operation.magnitude, Image.Resampling[interpolation.upper()])


def _affine(image: Image.Image, matrix: tuple[float, ...], resampling: Image.Resampling) -> Image.Image:
    """Each pixel (x, y) is taken from (a x + b y + c, d x + e y + f) of the image."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=(0, 0, 0))


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    # Hue is 0 to 255 for a whole turn, and goes round.
    turned = np.asarray(hue) + np.uint8(int(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


OPERATIONS: dict[str, Callable[[Image.Image, float, Image.Resampling], Image.Image]] = {
    "identity": lambda image, _, __: image,
    "shear_x": lambda image, degrees, filter: _affine(image, (1, math.tan(math.radians(degrees)), 0, 0, 1, 0), filter),
    # Not the tangent: the last bit of torchvision's matrix is another.
    "shear_y": lambda image, degrees, filter: _affine(
        image, (1, 0, 0, math.sin(math.radians(degrees)) / math.cos(math.radians(degrees)), 1, 0), filter
    ),
    "translate_x": lambda image, by, filter: _affine(image, (1, 0, -by, 0, 1, 0), filter),
    "translate_y": lambda image, by, filter: _affine(image, (1, 0, 0, 0, 1, -by), filter),
    "rotate": lambda image, degrees, filter: image.rotate(degrees, filter, fillcolor=(0, 0, 0)),
    "brightness": lambda image, factor, _: ImageEnhance.Brightness(image).enhance(factor),
    "saturation": lambda image, factor, _: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor, _: ImageEnhance.Contrast(image).enhance(factor),
    "sharpness": lambda image, factor, _: ImageEnhance.Sharpness(image).enhance(factor),
    "posterize": lambda image, bits, _: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold, _: ImageOps.solarize(image, threshold),  # pyright: ignore[reportArgumentType]
    "autocontrast": lambda image, _, __: ImageOps.autocontrast(image),
    "equalize": lambda image, _, __: ImageOps.equalize(image),
    "hue": lambda image, turn, _: _turn_hue(image, turn),
}
"""Every operation, by the name that `Operation` has: of an image, a magnitude and a filter."""


def build_policies(augment: AugmentSection) -> PolicyPipeline | None:
    policies: list[Policy] = []
    if policy := augment.policy:
        if policy.name == "randaugment":
            assert policy.num_ops is not None
            assert policy.magnitude is not None
            policies.append(RandAugment(policy.num_ops, policy.magnitude, policy.num_magnitude_bins))
        else:
            policies.append(TrivialAugment(policy.num_magnitude_bins))
    if jitter := augment.color_jitter:
        policies.append(ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
    return PolicyPipeline(tuple(policies), augment.interpolation) if policies else None
