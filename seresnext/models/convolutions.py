"""The 1x1 and the grouped convolution, with what makes training on a CPU in NHWC faster (BENCHMARKS.md)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_cpu_path(x: Tensor) -> bool:
    """Whether gradients are wanted of maps N C H W that are on the CPU, in NHWC, and computed in their own format."""
    has_rows = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return has_rows and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution without bias: N in H W to N out H/stride W/stride. Like `nn.Conv2d` but for its speed.

    In NHWC on the CPU its weight's gradient is one product of matrices with a row for each pixel, which is faster than
    oneDNN's kernel for it where there is no AVX-512. The pixels that a stride leaves are picked before.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if use_cpu_path(input):
            return _Pointwise.apply(input, self.weight, self.stride[0])  # pyright: ignore[reportReturnType]
        return super().forward(input)


class GroupedConv2d(nn.Conv2d):
    """A 3x3 convolution in groups, without bias: N C H W to N C H/stride W/stride. Like `nn.Conv2d` but for its speed.

    Groups of 4 channels, those of the first stage, fill half a vector of AVX2, and oneDNN has no kernel of its own for
    them. In NHWC on the CPU two of them train as one of 8, with zeros for the weights between them.
    """

    def __init__(self, channels: int, stride: int, groups: int) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.shape[1] == 4 and self.groups % 2 == 0 and use_cpu_path(input):
            return F.conv2d(input, _in_pairs(self.weight), None, self.stride, self.padding, groups=self.groups // 2)
        return super().forward(input)


def _in_pairs(weight: Tensor) -> Tensor:
    """Weights C c 3 3 of groups of c channels as those, C 2c 3 3, of the half as many groups that do the same."""
    c = weight.shape[1]
    first, second = weight.unflatten(0, (-1, 2, c)).unbind(1)  # Pairs c c 3 3.
    first, second = F.pad(first, (0, 0, 0, 0, 0, c)), F.pad(second, (0, 0, 0, 0, c, 0))
    return torch.stack((first, second), dim=1).flatten(0, 2)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        picked = x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(picked, weight)
        ctx.size, ctx.stride = x.shape, stride
        return torch.conv2d(picked, weight)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the names)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        picked, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _gradient_of_input(gradient, picked, weight)
            if ctx.stride > 1:
                of_all = of_x.new_zeros(ctx.size).contiguous(memory_format=torch.channels_last)
                of_all[:, :, :: ctx.stride, :: ctx.stride] = of_x
                of_x = of_all
        if ctx.needs_input_grad[1]:
            # The weight's own strides, which differ where a side is 1: DDP takes others for another layout.
            of_weight = (_rows(gradient).t() @ _rows(picked)).as_strided(weight.shape, weight.stride())
        return of_x, of_weight, None


def _gradient_of_input(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    (stride, padding, dilation), transposed, output_padding, groups = ([1, 1], [0, 0], [1, 1]), False, [0, 0], 1
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, [True, False, False])[0]


def _rows(maps: Tensor) -> Tensor:
    """N C H W as a matrix N*H*W C; without copying from NHWC."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
