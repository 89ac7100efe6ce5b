"""The end of a bottleneck, for training on a CPU with two thirds of the passes over memory.

BatchNorm, squeeze-and-excitation, the addition of the shortcut and ReLU are few operations on many numbers, so they
take as long as memory does. Up to the shortcut they are one linear function for each channel of an image, and so is the
way back from it: all that has to be known of the maps beforehand are sums.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Bytes of an image's maps from which a call of a kernel for it alone pays: those of 1024 channels at 14x14 do, those of
# 2048 at 7x7 are even, those of 32 pixel images do not (AMD EPYC with AVX2, 1 and 2 threads).
_ONE_CALL = 512 << 10


def fused_bn_se_add_relu(
    x: Tensor, shortcut: Tensor, norm: nn.BatchNorm2d, fc1: nn.Conv2d, fc2: nn.Conv2d, kept: Tensor | None = None
) -> Tensor:
    """relu(shortcut + kept * SE(norm(x))) of maps N C H W in NHWC, `norm` being in training mode.

    `fc1` and `fc2` are squeeze-and-excitation's two layers. `kept`, N 1 1 1, is what drop path multiplies branches by.
    As the modules do it one by one but for rounding, their updates of the running statistics included.
    """
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    layers = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    running = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
    return _End.apply(x, shortcut, norm.weight, norm.bias, *layers, kept, *running)  # pyright: ignore[reportReturnType]


class _End(torch.autograd.Function):
    """Of x, N C H W, with its mean and deviation over the batch: y = weight * (x - mean) / deviation + bias.

    Squeezed, N C, is the mean of y over a map; excitation, N C, is sigmoid(fc2(relu(fc1(squeezed)))); the output is
    relu(y * excitation * kept + shortcut).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shortcut: Tensor,
        weight: Tensor,
        bias: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        kept: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, variance = torch.batch_norm_update_stats(x, running_mean, running_var, momentum)  # C
        inverse = (variance + eps).rsqrt()  # C, one by the deviation
        normed = (x.mean((2, 3)) - mean) * inverse  # N C, the mean of (x - mean) / deviation over a map
        squeezed = weight * normed + bias
        hidden = F.relu(F.linear(squeezed, weight1.flatten(1), bias1))  # N C/reduction
        excitation = F.linear(hidden, weight2.flatten(1), bias2).sigmoid()
        factor = excitation if kept is None else excitation * kept.flatten(1)
        slope = weight * inverse  # C, of y by x
        # y * factor is the line of x with this offset and the slope times the factor.
        output = torch.addcmul(_maps((bias - slope * mean) * factor), x, _maps(slope * factor))
        output.add_(shortcut).relu_()  # Not torch's `_add_relu_`, which takes a NaN for 0 where a vector is not full.
        ctx.save_for_backward(
            x, output, weight, bias, weight1, weight2, kept, mean, inverse, normed, squeezed, hidden, excitation
        )
        ctx.eps = eps
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the names)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, output, weight, bias, weight1, weight2, kept, mean, inverse, normed, squeezed, hidden, excitation = (
            ctx.saved_tensors
        )
        area = x.shape[2] * x.shape[3]
        count = x.shape[0] * area
        of_sum = torch.ops.aten.threshold_backward(gradient, output, 0)  # Of the sum that ReLU sees: the shortcut's.
        sums, products = _sums(of_sum, x, mean, inverse, ctx.eps)
        factor = excitation
        if kept is not None:
            factor = excitation * kept.flatten(1)
            sums, products = sums * kept.flatten(1), products * kept.flatten(1)
        # Squeeze-and-excitation, backwards.
        of_fc2 = (weight * products + bias * sums) * excitation * (1 - excitation)  # N C
        of_fc1 = (of_fc2 @ weight2.flatten(1)) * (hidden > 0)  # N C/reduction
        of_squeezed = of_fc1 @ weight1.flatten(1)  # N C
        # BatchNorm's, where y has the gradient of_sum * factor + of_squeezed / area.
        of_weight = (excitation * products + of_squeezed * normed).sum(0)
        of_bias = (excitation * sums + of_squeezed).sum(0)
        # slope * (y's gradient - of_bias / count - (x - mean) / deviation * of_weight / count), as a line of both.
        slope = weight * inverse
        by_x = -slope * inverse * of_weight / count  # C
        offset = slope * (of_squeezed / area - of_bias / count) - by_x * mean  # N C
        of_x = torch.addcmul(_maps(offset), x, _maps(by_x)).addcmul_(of_sum, _maps(slope * factor))
        return (
            of_x,
            of_sum,
            of_weight,
            of_bias,
            # The weights' own strides, as in convolutions.py.
            (of_fc1.t() @ squeezed).as_strided(weight1.shape, weight1.stride()),
            of_fc1.sum(0),
            (of_fc2.t() @ hidden).as_strided(weight2.shape, weight2.stride()),
            of_fc2.sum(0),
            *[None] * 5,
        )


def _sums(gradient: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sums over each map, N C, of the gradient and of its product with (x - mean) / deviation.

    BatchNorm's backward kernel computes the two over a batch, in one pass over both, where the gradient of x is not
    asked for. It is called for each image, as a batch of one, where that is long enough beside a call.
    """
    if x[0].nbytes < _ONE_CALL:
        return gradient.sum((2, 3)), (gradient * (x - _maps(mean))).sum((2, 3)) * inverse
    of_parameters = (None, None, None, mean, inverse, True, eps, [False, True, True])
    images = zip(gradient.split(1), x.split(1), strict=True)
    found = [torch.ops.aten.native_batch_norm_backward(*image, *of_parameters)[1:] for image in images]
    products, sums = zip(*found, strict=True)
    return torch.stack(sums), torch.stack(products)


def _maps(values: Tensor) -> Tensor:
    """C or N C as the maps that broadcast to it, C 1 1 or N C 1 1."""
    return values[..., None, None]
