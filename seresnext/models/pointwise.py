"""The 1x1 convolution, for the CPU as the product of matrices that it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution without bias: N in H W to N out H/stride W/stride. Like `nn.Conv2d` but for its speed.

    In NHWC on the CPU its weight's gradient is one product of matrices with a row for each pixel, which is faster than
    oneDNN's kernel for it where there is no AVX-512 (BENCHMARKS.md). The pixels that a stride leaves are picked before.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        has_rows = input.device.type == "cpu" and input.is_contiguous(memory_format=torch.channels_last)
        if has_rows and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            return _Pointwise.apply(input, self.weight, self.stride[0])  # pyright: ignore[reportReturnType]
        return super().forward(input)


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
