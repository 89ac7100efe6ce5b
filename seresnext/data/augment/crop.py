"""Crop and resize: random crop and flip in training, centre crop in evaluation, and the size by step."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seresnext.data.decode.pillow import Decoding, decode
from seresnext.data.decode.regions import Crop
from seresnext.errors import DataError
from seresnext.randomness import RandomStream
from seresnext.recipe.schema import AugmentSection, Recipe

_CROP_ATTEMPTS = 10


def random_resized_crop(augment: AugmentSection, width: int, height: int, draws: RandomStream) -> Crop:
    """Return a random crop and flip by torchvision's RandomResizedCrop (Szegedy et al. 2015, section 6)."""
    flip = draws.bernoulli(augment.flip)
    low, high = (math.log(ratio) for ratio in augment.crop_ratio)
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * draws.uniform(*augment.crop_scale)
        ratio = math.exp(draws.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(draws.randint(width - w + 1), draws.randint(height - h + 1), w, h, flip)
    # For an image that is too long, the largest crop of the middle within the range of ratios.
    w, h = width, height
    if width / height < augment.crop_ratio[0]:
        h = round(width / augment.crop_ratio[0])
    elif width / height > augment.crop_ratio[1]:
        w = round(height * augment.crop_ratio[1])
    return Crop((width - w) // 2, (height - h) // 2, w, h, flip)


@dataclass(frozen=True)
class ResizeCenterCrop:
    """Resize of the shorter side to `floor(image_size / crop_pct)`, as in timm's evaluation, then a centre crop.

    Pillow resizes, because published accuracies were measured on Pillow's pixels.
    """

    image_size: int
    crop_pct: float
    interpolation: str

    def decode_and_crop(self, data: bytes, name: str, decoding: Decoding) -> Tensor:
        """Return the centre crop of an encoded image, uint8 H W C.

        Raises DataError as `decode` does, and for a long image with too many pixels after the resize.
        """
        image = decode(data, name, decoding)
        width, height = self._resized(image)
        if width * height > decoding.max_pixels:
            raise DataError(
                f"{name} has {image.width} x {image.height} pixels and would be resized to {width} x {height}, more "
                f"than data.max_pixels ({decoding.max_pixels}); remove the file or raise the limit"
            )
        return self(image)

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        short = math.floor(self.image_size / self.crop_pct)
        shorter = min(image.size)
        return int(short * image.width / shorter), int(short * image.height / shorter)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the centre crop of an image, uint8 H W C. Pixels outside of the image are black."""
        size = self._resized(image)
        if size != image.size:
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        left, top = (round((side - self.image_size) / 2) for side in image.size)
        box = (left, top, left + self.image_size, top + self.image_size)
        return torch.from_numpy(np.array(image.crop(box)))


def resize_into(out: Tensor, pixels: np.ndarray, interpolation: str) -> None:
    """Write an RGB image (uint8 H W 3), resized, into `out` (uint8 size size 3, contiguous).

    Torch's kernel differs from Pillow by at most 2 levels (bilinear) or 10 (bicubic), and is several times as fast.
    `pixels` may be a turned view of contiguous pixels. These are resized as stored, and the small result is turned.
    """
    if pixels.flags.c_contiguous and min(pixels.strides) > 0:
        _resize(out, pixels, interpolation)
        return
    size = len(out)
    steps = [1 if stride > 0 else -1 for stride in pixels.strides[:2]]
    is_swapped = abs(pixels.strides[0]) < abs(pixels.strides[1])
    stored = pixels[:: steps[0], :: steps[1]]
    if is_swapped:
        # The kernel resizes the width first. The width of the turned image is the height of the stored one.
        stored = stored.transpose(1, 0, 2)
        narrow = torch.empty((size, stored.shape[1], 3), dtype=torch.uint8)
        _resize(narrow, stored, interpolation)
        stored = narrow.numpy()
    small = torch.empty_like(out)
    _resize(small, stored, interpolation)
    found = small.numpy().view("V3")[..., 0]  # Items of 3 bytes: a copy of single bytes takes twice as long.
    out.numpy().view("V3")[..., 0] = (found.T if is_swapped else found)[:: steps[0], :: steps[1]]


def _resize(out: Tensor, pixels: np.ndarray, interpolation: str) -> None:
    """Write an RGB image (uint8 H W 3), resized, into `out` (uint8 height width 3). Both are contiguous."""
    # N C H W in channels-last memory. Torch's own batch stride of one image would hide the memory format.
    source, target = (
        each.as_strided((1, 3, *each.shape[:2]), (each.numel(), 1, each.shape[1] * 3, 3))
        for each in (torch.from_numpy(pixels), out)
    )
    # An operator that torch.nn.functional.interpolate calls. Only the operators take `out`.
    kernel = getattr(torch._C._nn, f"_upsample_{interpolation}2d_aa")  # pyright: ignore[reportAttributeAccessIssue]
    kernel(source, out.shape[:2], False, None, None, out=target)


_MULTIPLE = 32  # The network divides the side of an image by 32.


@dataclass(frozen=True)
class ImageSizeSchedule:
    """The side of a training image in pixels: `min_size` before step `start`, `max_size` from step `end` on.

    In between, the size grows linearly, in multiples of 32, as in FFCV's recipes (rn50_configs, `resolution`).
    """

    min_size: int
    max_size: int
    start: int
    end: int

    def size_at(self, step: int) -> int:
        """Return the side of the images of a step (from 0), in pixels."""
        if step >= self.end:
            return self.max_size
        if step < self.start:
            return self.min_size
        on_line = self.min_size + (self.max_size - self.min_size) * (step - self.start) / (self.end - self.start)
        return min(max(_MULTIPLE * round(on_line / _MULTIPLE), self.min_size), self.max_size)


def build_image_size_schedule(recipe: Recipe, steps_per_epoch: int) -> ImageSizeSchedule | None:
    """Return the size schedule of a recipe, or None for a constant size."""
    section = recipe.data.progressive
    if section is None:
        return None
    assert section.min_size is not None
    assert section.end_ramp is not None
    start, end = (duration.steps(steps_per_epoch) for duration in (section.start_ramp, section.end_ramp))
    return ImageSizeSchedule(section.min_size, section.max_size or recipe.data.image_size, start, end)
