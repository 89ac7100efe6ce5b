"""The 1x1 and the grouped convolution, against torch's own on the same inputs."""

import pytest
import torch
from torch import nn

from seresnext.models.convolutions import GroupedConv2d, PointwiseConv2d

ROWS, PLANES = torch.channels_last, torch.contiguous_format


def results(forward, layer, x, dtype=torch.float64):
    """Output, and gradients of input and weight, of an arbitrary loss."""
    x = x.to(dtype).requires_grad_()  # Keeps its layout.
    y = forward(layer, x)
    wanted = [tensor for tensor in (x, layer.weight) if tensor.requires_grad]
    return y, *torch.autograd.grad(y, wanted, torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))


def is_own(y):
    return type(y.grad_fn).__name__ == "_PointwiseBackward"


@pytest.mark.parametrize("layout", [ROWS, PLANES])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 7), (8, 6), (1, 1)])
def test_it_is_a_convolution(layout, stride, size):
    torch.manual_seed(0)
    layer = PointwiseConv2d(8, 12, stride).double().to(memory_format=layout)
    x = torch.randn(3, 8, *size).contiguous(memory_format=layout)
    ours, theirs = results(PointwiseConv2d.forward, layer, x), results(nn.Conv2d.forward, layer, x)
    assert is_own(ours[0]) == x.is_contiguous(memory_format=ROWS)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert one.is_contiguous(memory_format=layout) or layout is PLANES
    assert ours[2].stride() == layer.weight.stride()


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    layer = PointwiseConv2d(2, 3, 2).double()
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64).to(memory_format=ROWS).requires_grad_()

    def forward(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, x)

    assert torch.autograd.gradcheck(forward, (x, layer.weight))


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_only_what_is_wanted_has_a_gradient(frozen):
    layer = PointwiseConv2d(4, 4)
    layer.weight.requires_grad_(frozen != "weight")
    x = torch.randn(2, 4, 5, 5).to(memory_format=ROWS).requires_grad_(frozen != "input")
    layer(x).sum().backward()
    assert (x.grad is None, layer.weight.grad is None) == (frozen == "input", frozen == "weight")


@pytest.mark.parametrize("how", ["evaluation", "autocast"])
def test_elsewhere_it_is_torchs(how):
    layer = PointwiseConv2d(4, 4)
    x = torch.randn(2, 4, 5, 5).to(memory_format=ROWS)
    with torch.no_grad() if how == "evaluation" else torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert torch.equal(y, nn.Conv2d.forward(layer, x))
    assert not is_own(y)


def test_memory_of_a_network_in_rows_stays_in_rows():
    """Else every operation that follows would have to read one tensor across."""
    layer = PointwiseConv2d(4, 6, 2)
    x = torch.randn(2, 4, 6, 6).to(memory_format=ROWS).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x), x, torch.ones(2, 6, 3, 3))  # A gradient in planes.
    assert gradient.is_contiguous(memory_format=ROWS)
    picked = torch.zeros(6, 6, dtype=torch.bool)
    picked[::2, ::2] = True
    assert torch.equal(gradient != 0, picked.expand_as(gradient))


# --------------------------------------------------------------------------------------------------- in groups


@pytest.mark.parametrize("layout", [ROWS, PLANES])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (128, 32), (12, 3), (4, 1), (32, 4)])
def test_groups_are_a_convolution(layout, stride, channels, groups):
    torch.manual_seed(0)
    layer = GroupedConv2d(channels, stride, groups).double().to(memory_format=layout)
    x = torch.randn(3, channels, 8, 7).contiguous(memory_format=layout)
    ours, theirs = results(GroupedConv2d.forward, layer, x), results(nn.Conv2d.forward, layer, x)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    paired = layout is ROWS and channels == 4 * groups and groups % 2 == 0
    assert ours[0].grad_fn._saved_groups == (groups // 2 if paired else groups)


@pytest.mark.parametrize("how", ["evaluation", "autocast"])
def test_groups_elsewhere_are_torchs(how):
    layer = GroupedConv2d(16, 1, 4)
    x = torch.randn(2, 16, 5, 5).to(memory_format=ROWS)
    with torch.no_grad() if how == "evaluation" else torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert torch.equal(y, nn.Conv2d.forward(layer, x))
    assert y.grad_fn is None or y.grad_fn._saved_groups == 4
