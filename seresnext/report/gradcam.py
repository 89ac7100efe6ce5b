"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): the places of an image that raise the score of a class."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seresnext.models import SENet
from seresnext.process.packages import extra

_STAGES = (("layer4", 32), ("layer3", 16), ("layer2", 8))  # stage and pixels of the image for each position
_FEWEST_POSITIONS = 4  # on a side; a smaller map says little about places
_BATCH = 8
_COLOUR = (255, 120, 0)


def choose_stage(image_size: int) -> str:
    """Return the last stage with at least 4 x 4 positions: `layer4` from 128 pixels, at least `layer2`."""
    return next((name for name, stride in _STAGES if image_size >= _FEWEST_POSITIONS * stride), _STAGES[-1][0])


def grad_cam(model: SENet, images: Tensor, classes: Sequence[int], stage: str) -> np.ndarray:
    """Return the maps of a stage for the given classes, scaled to 0..1: float32 N h w for images N C H W.

    The parameters of the model get no gradients, so nothing before the stage is stored for the backward pass.
    """
    with extra("report"):
        from captum.attr import LayerGradCam
    model.eval().requires_grad_(False)
    method = LayerGradCam(model, model.get_submodule(stage))
    parts = []
    for start in range(0, len(images), _BATCH):
        some = slice(start, start + _BATCH)
        found = method.attribute(images[some], target=list(classes[some]), relu_attributions=True)
        assert isinstance(found, Tensor)
        parts.append(found.detach()[:, 0].float().cpu())
    maps = torch.cat(parts)
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)).numpy()


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Return a gray copy of an image with orange at the high places of a map (h w, 0..1)."""
    share = Image.fromarray((0.75 * 255 * heat).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", image.size, _COLOUR), image.convert("L").convert("RGB"), share)
