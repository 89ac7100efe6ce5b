"""The resize of training images: torch's antialiased kernel for uint8, on one image at a time, into its place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# The operators that torch.nn.functional.interpolate calls, here for their `out`.
_KERNELS = {
    "bilinear": torch._C._nn._upsample_bilinear2d_aa,  # pyright: ignore[reportAttributeAccessIssue]
    "bicubic": torch._C._nn._upsample_bicubic2d_aa,  # pyright: ignore[reportAttributeAccessIssue]
}


def resize_into(out: Tensor, pixels: np.ndarray, interpolation: str) -> None:
    """Resize an RGB image, uint8 H W 3, to fill `out`, uint8 size size 3 and contiguous.

    Within 2 levels of Pillow for bilinear and 10 for bicubic, and several times as fast.
    """
    height, width = pixels.shape[:2]
    # As N C H W with channels last. The batch stride is given: torch's own for one image hides that channels come last.
    strides = (height * width * 3, 1, width * 3, 3)
    source = torch.from_numpy(pixels).as_strided((1, 3, height, width), strides)
    size = len(out)
    target = out.as_strided((1, 3, size, size), (size * size * 3, 1, size * 3, 3))
    _KERNELS[interpolation](source, (size, size), False, None, None, out=target)
