"""Faster training of the bottleneck on a CPU, in channels_last.

The kernels compute the same numbers as the modules of the block, except for rounding (speed: docs/benchmarks.md).
`blocks.py` asks `has_kernels_for`. Evaluation, tracing, export, torch.compile and blocks with hooks never use them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

_LEAVES = {nn.Conv2d, nn.BatchNorm2d}

# Bytes of one image's maps above which `_channel_sums` calls a kernel per image. Measured on an AMD EPYC with AVX2, 1
# and 2 threads: faster for 1024 channels at 14x14, even for 2048 at 7x7, slower for images of 32 pixels.
_KERNEL_PER_IMAGE = 512 << 10


def has_kernels_for(block: nn.Module, x: Tensor) -> bool:
    """Return whether `train_bottleneck` can replace the forward pass of this bottleneck for the maps x, N C H W.

    The block must be in training mode, with gradients, in channels_last on a CPU, without autocast. No submodule may
    have a hook, a forward of its own or another class: the kernels do not call most of the submodules.
    """
    return (
        block.training
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and type(x) is Tensor  # Fake tensors and other subclasses record the operations of the modules.
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and not _has_any_global_hook()
        and all(map(_is_unchanged, block.modules()))
    )


def _is_unchanged(module: nn.Module) -> bool:
    """Return whether a module is as the block made it and trains, so that a kernel can replace a call of the module."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    is_known = type(module) in _LEAVES or next(module.children(), None) is not None
    return is_known and module.training and not any(hooks) and "forward" not in vars(module)


def train_bottleneck(block: Any, x: Tensor, drop_path_mask: Tensor | None) -> Tensor:
    """Return the output of an `SEResNeXtBottleneck` in training mode for maps N C H W in channels_last."""
    shortcut = x
    if block.downsample is not None:
        conv, norm = block.downsample
        shortcut = norm(_pointwise(x, conv))
    x = F.relu(block.bn1(_pointwise(x, block.conv1)), inplace=True)
    x = F.relu(block.bn2(_grouped(x, block.conv2)), inplace=True)
    x = _pointwise(x, block.conv3)
    return block_end(x, shortcut, block.bn3, block.se_module, drop_path_mask)


# Convolutions


def _pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return _Pointwise.apply(x, conv.weight, conv.stride[0])  # pyright: ignore[reportReturnType]


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution without bias: N in H W to N out H/stride W/stride.

    The gradient of the weight is one matrix product with a row for each pixel. Without AVX-512 that is faster than
    oneDNN's kernel. A stride picks its pixels before the convolution.
    """

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
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            stride, padding, dilation, transposed, output_padding, groups = [1, 1], [0, 0], [1, 1], False, [0, 0], 1
            geometry = (stride, padding, dilation, transposed, output_padding, groups, [True, False, False])
            grad_x = torch.ops.aten.convolution_backward(gradient, picked, weight, None, *geometry)[0]
            if ctx.stride > 1:
                grad_picked, grad_x = grad_x, grad_x.new_zeros(ctx.size).contiguous(memory_format=torch.channels_last)
                grad_x[:, :, :: ctx.stride, :: ctx.stride] = grad_picked
        if ctx.needs_input_grad[1]:
            # DDP compares the strides of gradient and weight. The strides can differ where a side has length 1.
            grad_weight = (_rows(gradient).t() @ _rows(picked)).as_strided(weight.shape, weight.stride())
        return grad_x, grad_weight, None


def _rows(maps: Tensor) -> Tensor:
    """Return N C H W as a matrix N*H*W C. Maps in channels_last are not copied."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _grouped(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return `conv(x)` of a 3x3 convolution in groups.

    oneDNN has no kernel for groups of 4 channels (the first stage), which fill half a vector of AVX2. Two of these
    groups are computed as one group of 8, with zeros for the weights between the two.
    """
    if conv.weight.shape[1] == 4 and conv.groups % 2 == 0:
        return F.conv2d(x, _merge_pairs(conv.weight), None, conv.stride, conv.padding, groups=conv.groups // 2)
    return conv(x)


def _merge_pairs(weight: Tensor) -> Tensor:
    """Return weights C c 3 3 of groups of c channels as weights C 2c 3 3 of half as many groups."""
    c = weight.shape[1]
    first, second = weight.unflatten(0, (-1, 2, c)).unbind(1)  # each: pairs c c 3 3
    first, second = F.pad(first, (0, 0, 0, 0, 0, c)), F.pad(second, (0, 0, 0, 0, c, 0))
    return torch.stack((first, second), dim=1).flatten(0, 2)


# The end of the block


def block_end(x: Tensor, shortcut: Tensor, norm: nn.BatchNorm2d, se: Any, drop_path_mask: Tensor | None) -> Tensor:
    """Return relu(shortcut + drop_path_mask * se(norm(x))) for maps N C H W in channels_last, a mask N 1 1 1.

    `norm` trains and is updated.
    """
    parameters = (norm.weight, norm.bias, se.fc1.weight, se.fc1.bias, se.fc2.weight, se.fc2.bias)
    return _BlockEnd.apply(x, shortcut, *parameters, drop_path_mask, norm)  # pyright: ignore[reportReturnType]


class _BlockEnd(torch.autograd.Function):
    """BatchNorm, squeeze-and-excitation, addition of the shortcut and ReLU, with two thirds of the memory traffic.

    These four are few operations on many numbers, so memory sets the speed. Up to the shortcut they are one linear
    function of x for each channel of each image, and so is the gradient. The kernel needs only sums over the maps to
    compute the coefficients.

    With mean and deviation of x (N C H W) over the batch: y = weight * (x - mean) / deviation + bias. `squeezed`, N C,
    is the mean of y over a map. `excitation`, N C, is sigmoid(fc2(relu(fc1(squeezed)))). The output is
    relu(y * excitation * mask + shortcut).
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
        mask: Tensor | None,
        norm: Any,
    ) -> Tensor:
        norm.num_batches_tracked.add_(1)
        mean, variance = torch.batch_norm_update_stats(x, norm.running_mean, norm.running_var, norm.momentum)  # C
        inverse = (variance + norm.eps).rsqrt()  # C, 1 / deviation
        normed = (x.mean((2, 3)) - mean) * inverse  # N C, the mean of (x - mean) / deviation over a map
        squeezed = weight * normed + bias
        hidden = F.relu(F.linear(squeezed, weight1.flatten(1), bias1))  # N C/reduction
        excitation = F.linear(hidden, weight2.flatten(1), bias2).sigmoid()
        factor = excitation if mask is None else excitation * mask.flatten(1)
        slope = weight * inverse  # C, of y as a function of x
        # y * factor = (bias - slope * mean) * factor + x * (slope * factor)
        output = torch.addcmul(_as_maps((bias - slope * mean) * factor), x, _as_maps(slope * factor))
        # torch's `_add_relu_` turns a NaN into 0 where the last vector of the data is not full.
        output.add_(shortcut).relu_()
        ctx.save_for_backward(
            x, output, weight, bias, weight1, weight2, mask, mean, inverse, normed, squeezed, hidden, excitation
        )
        ctx.eps = norm.eps
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the names)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, output, weight, bias, weight1, weight2, mask, mean, inverse, normed, squeezed, hidden, excitation = (
            ctx.saved_tensors
        )
        area = x.shape[2] * x.shape[3]
        count = x.shape[0] * area
        grad_sum = torch.ops.aten.threshold_backward(gradient, output, 0)  # before ReLU, and of the shortcut
        sums, products = _channel_sums(grad_sum, x, mean, inverse, ctx.eps)
        factor = excitation
        if mask is not None:
            factor = excitation * mask.flatten(1)
            sums, products = sums * mask.flatten(1), products * mask.flatten(1)
        # Squeeze-and-excitation.
        grad_fc2 = (weight * products + bias * sums) * excitation * (1 - excitation)  # N C
        grad_fc1 = (grad_fc2 @ weight2.flatten(1)) * (hidden > 0)  # N C/reduction
        grad_squeezed = grad_fc1 @ weight1.flatten(1)  # N C
        # BatchNorm. The gradient of y is grad_sum * factor + grad_squeezed / area.
        grad_weight = (excitation * products + grad_squeezed * normed).sum(0)
        grad_bias = (excitation * sums + grad_squeezed).sum(0)
        # grad_x = slope * (grad_y - grad_bias / count - (x - mean) / deviation * grad_weight / count), in terms of
        # x and grad_sum: offset + x * slope_x + grad_sum * (slope * factor).
        slope = weight * inverse
        slope_x = -slope * inverse * grad_weight / count  # C
        offset = slope * (grad_squeezed / area - grad_bias / count) - slope_x * mean  # N C
        grad_x = torch.addcmul(_as_maps(offset), x, _as_maps(slope_x)).addcmul_(grad_sum, _as_maps(slope * factor))
        return (
            grad_x,
            grad_sum,
            grad_weight,
            grad_bias,
            # The strides of the weights, as in `_Pointwise`.
            (grad_fc1.t() @ squeezed).as_strided(weight1.shape, weight1.stride()),
            grad_fc1.sum(0),
            (grad_fc2.t() @ hidden).as_strided(weight2.shape, weight2.stride()),
            grad_fc2.sum(0),
            None,
            None,
        )


def _channel_sums(gradient: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the sums over each map, N C, of the gradient and of gradient * (x - mean) / deviation.

    BatchNorm's backward kernel computes both sums over a batch in one pass if the gradient of x is not requested. The
    kernel is called for each image as a batch of one, where the image is large enough to pay for a call.
    """
    if x[0].nbytes < _KERNEL_PER_IMAGE:
        return gradient.sum((2, 3)), (gradient * (x - _as_maps(mean))).sum((2, 3)) * inverse
    statistics = (None, None, None, mean, inverse, True, eps, [False, True, True])
    images = zip(gradient.split(1), x.split(1), strict=True)
    found = [torch.ops.aten.native_batch_norm_backward(*image, *statistics)[1:] for image in images]
    products, sums = zip(*found, strict=True)
    return torch.stack(sums), torch.stack(products)


def _as_maps(values: Tensor) -> Tensor:
    """Return C or N C as C 1 1 or N C 1 1, which broadcasts to maps N C H W."""
    return values[..., None, None]
