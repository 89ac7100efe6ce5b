"""Augmentation policies after the crop: RandAugment, TrivialAugment, colour jitter.

Pillow computes the operations. Pixels and distributions of the parameters are equal to torchvision's on Pillow images.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from seresnext.randomness import RandomStream
from seresnext.recipe.schema import AugmentSection, ColorJitterSection, PolicySection


class AugmentOp(NamedTuple):
    """The name of an operation in `OPERATIONS`, and the magnitude in the unit of the operation (0 without a unit)."""

    name: str
    magnitude: float


def retouch(augment: AugmentSection, pixels: Tensor, flip: bool, draws: RandomStream) -> Tensor:
    """Return an image (uint8 H W C, square), mirrored if `flip`, after policy and colour jitter.

    The mirroring must come first: a shear to the left is no shear to the right. Pixels that an operation leaves empty
    are black.
    """
    if flip:
        pixels = pixels.flip(1)
    operations = []
    if augment.policy:
        operations += _POLICIES[augment.policy.name](augment.policy, len(pixels), draws)
    if augment.color_jitter:
        operations += jitter_color(augment.color_jitter, draws)
    if all(operation.name == "identity" for operation in operations):
        return pixels
    image = Image.fromarray(pixels.numpy())
    for name, magnitude in operations:
        image = OPERATIONS[name](image, magnitude, Image.Resampling[augment.interpolation.upper()])
    return torch.from_numpy(np.array(image))


def rand_augment(policy: PolicySection, size: int, draws: RandomStream) -> list[AugmentOp]:
    """Draw as RandAugment (Cubuk et al. 2020): several random operations of one magnitude."""
    assert policy.num_ops is not None
    assert policy.magnitude is not None
    level = policy.magnitude / (policy.num_magnitude_bins - 1)
    # The paper's code shifts by up to 150 of 331 pixels.
    limits = {"shear": 0.3, "shift": 150 / 331 * size, "angle": 30, "factor": 0.9, "bits": 4}
    return [_draw_op(draws, level, **limits) for _ in range(policy.num_ops)]


def trivial_augment(policy: PolicySection, size: int, draws: RandomStream) -> list[AugmentOp]:
    """Draw as TrivialAugment Wide (Mueller and Hutter 2021): one random operation of a random magnitude."""
    level = draws.randint(policy.num_magnitude_bins) / (policy.num_magnitude_bins - 1)
    return [_draw_op(draws, level, shear=0.99, shift=32, angle=135, factor=0.99, bits=6)]


def jitter_color(jitter: ColorJitterSection, draws: RandomStream) -> list[AugmentOp]:
    """Draw brightness, contrast, saturation and hue, each with a random factor, in a random order.

    A factor is uniform in 1 - x .. 1 + x, at least 0. Hue turns by a uniform share of a turn in -x .. x.
    """
    operations = [
        AugmentOp(name, draws.uniform(max(0.0, 1 - reach), 1 + reach))
        for name in ("brightness", "contrast", "saturation")
        if (reach := getattr(jitter, name))
    ]
    if jitter.hue:
        operations.append(AugmentOp("hue", draws.uniform(-jitter.hue, jitter.hue)))
    # A uniform shuffle (Fisher and Yates).
    for last in range(len(operations) - 1, 0, -1):
        other = draws.randint(last + 1)
        operations[last], operations[other] = operations[other], operations[last]
    return operations


def _draw_op(
    draws: RandomStream, level: float, *, shear: float, shift: float, angle: float, factor: float, bits: int
) -> AugmentOp:
    """Return a random operation of `_CHOICES` at a level of 0 to 1, with a random sign.

    At level 1, an operation shears by `shear`, shifts by `shift` pixels, turns by `angle` degrees, changes the factor 1
    of brightness and similar operations by `factor`, or removes `bits` of the 8 bits.
    """
    name = _CHOICES[draws.randint(len(_CHOICES))]
    sign = -1 if draws.bernoulli(0.5) else 1
    match name:
        case "shear_x" | "shear_y":
            magnitude = math.degrees(math.atan(sign * shear * level))
        case "translate_x" | "translate_y":
            # Rounded towards 0 to whole pixels, but 31.999999 becomes 32.
            magnitude = sign * int(shift * level + 1e-6)
        case "rotate":
            magnitude = sign * angle * level
        case "brightness" | "saturation" | "contrast" | "sharpness":
            magnitude = 1 + sign * factor * level
        case "posterize":
            magnitude = round(8 - bits * level)
        case "solarize":
            magnitude = 255 * (1 - level)
        case _:
            magnitude = 0
    return AugmentOp(name, magnitude)


def _affine(image: Image.Image, matrix: tuple[float, ...], resampling: Image.Resampling) -> Image.Image:
    """Return an image whose pixel (x, y) is the pixel (a x + b y + c, d x + e y + f) of the argument."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=(0, 0, 0))


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    # 256 steps of hue are a whole turn, and the addition wraps around.
    turned = np.asarray(hue) + np.uint8(int(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


OPERATIONS: dict[str, Callable[[Image.Image, float, Image.Resampling], Image.Image]] = {
    "identity": lambda image, _, __: image,
    "shear_x": lambda image, degrees, filter: _affine(image, (1, math.tan(math.radians(degrees)), 0, 0, 1, 0), filter),
    # sin / cos instead of tan, for the last bit of torchvision's matrix.
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
"""All operations by name. Each takes an RGB image, a magnitude and a filter, and returns an image of the same size."""

_CHOICES = [name for name in OPERATIONS if name != "hue"]  # Drawn by position.
_POLICIES = {"randaugment": rand_augment, "trivialaugment": trivial_augment}
