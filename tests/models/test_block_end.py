"""The end of a bottleneck in few passes, against its modules one by one and finite differences."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from seresnext.models.block_end import fused_bn_se_add_relu
from seresnext.models.blocks import SEResNeXtBottleneck, SqueezeExcitation

ROWS = torch.channels_last
CHANNELS = 6  # Maps that fill no vector of the processor to its end.


@pytest.fixture(autouse=True, params=["at once", "by image"])
def sums(request, monkeypatch):
    """Both ways to come by the sums over maps."""
    monkeypatch.setattr("seresnext.models.block_end._ONE_CALL", {"at once": 1 << 40, "by image": 0}[request.param])


class End(nn.Module):
    """BatchNorm and squeeze-and-excitation as training leaves them: nothing is at its initial value."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.squeeze = nn.BatchNorm2d(CHANNELS, momentum=0.3), SqueezeExcitation(CHANNELS, reduction=2)
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
            nn.init.normal_(tensor)
        self.double().to(memory_format=ROWS)


class InOne(End):
    def forward(self, x, shortcut, kept=None):
        return fused_bn_se_add_relu(x, shortcut, self.norm, self.squeeze.fc1, self.squeeze.fc2, kept)


class OneByOne(End):
    def forward(self, x, shortcut, kept=None):
        branch = self.squeeze(self.norm(x))
        return (branch + shortcut if kept is None else branch * kept + shortcut).relu()


def maps(count, height, width):
    """Of a mean that is no channel's own deviation away from 0."""
    return (torch.randn(count, CHANNELS, height, width, dtype=torch.float64) * 2 + 3).to(memory_format=ROWS)


def learn(end, x, shortcut, kept=None):
    """All that comes of a step: output, gradients of maps and parameters, statistics."""
    x, shortcut = x.clone().requires_grad_(), shortcut.clone().requires_grad_()
    output = end(x, shortcut, kept)
    output.backward(torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output))
    found = {"output": output.detach(), "x": x.grad, "shortcut": shortcut.grad, **end.state_dict()}
    return found | {f"gradient of {name}": parameter.grad for name, parameter in end.named_parameters()}


DROPPED = torch.tensor([0.0, 2.0, 2.0], dtype=torch.float64)[:, None, None, None]


@pytest.mark.parametrize("kept", [None, DROPPED], ids=["all", "dropped"])
@pytest.mark.parametrize("size", [(7, 7), (8, 6), (1, 1)])
def test_it_is_its_modules(size, kept):
    x, shortcut = maps(3, *size), maps(3, *size) - 3
    ours, theirs = learn(InOne(), x, shortcut, kept), learn(OneByOne(), x, shortcut, kept)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(ours[name], value, rtol=1e-11, atol=1e-11, msg=lambda message, name=name: f"{name}: {message}")
    assert ours["x"].is_contiguous(memory_format=ROWS)
    assert ours["output"].is_contiguous(memory_format=ROWS)


@pytest.mark.parametrize("mean", [0, 20, 500])
def test_in_single_precision_it_is_as_near_to_the_truth(mean):
    """Its own order of the operations must not cost digits, not even with a mean that is large beside the deviation."""
    x, shortcut = (maps(4, 14, 14) + mean).float(), (maps(4, 14, 14) - 3).float()
    truth = learn(OneByOne(), x.double(), shortcut.double())

    def errors(end):
        found = learn(end.float(), x, shortcut)
        return {name: float((found[name] - value).abs().max() / value.abs().max()) for name, value in truth.items()}

    ours, theirs = errors(InOne()), errors(OneByOne())
    for name, error in ours.items():
        assert error <= max(2 * theirs[name], 1e-6), name


def test_gradients_by_finite_differences():
    end = InOne()
    names = [name for name, _ in end.named_parameters()]

    def forward(x, shortcut, *parameters):
        return torch.func.functional_call(end, dict(zip(names, parameters, strict=True)), (x, shortcut))

    x, shortcut = maps(2, 3, 2).requires_grad_(), (maps(2, 3, 2) - 3).requires_grad_()
    assert torch.autograd.gradcheck(forward, (x, shortcut, *end.parameters()))


def test_a_number_that_is_none_comes_through():
    """Else a step that went wrong would pass for a good one."""
    x, shortcut = maps(3, 7, 7), maps(3, 7, 7)
    shortcut[-1, -1, -1, -1] = torch.nan
    output = InOne()(x.requires_grad_(), shortcut)
    assert output.isnan().nonzero().tolist() == [[2, CHANNELS - 1, 6, 6]]
    x.detach()[0, 0, 0, 0] = torch.nan
    output = InOne()(x, shortcut)
    assert output.isnan().all()  # By BatchNorm to its channel, by squeeze-and-excitation to all.


@pytest.mark.parametrize("where", ["rows", "planes", "frozen", "autocast", "evaluation"])
def test_a_block_ends_in_one_where_it_trains_in_rows(where):
    layout = torch.contiguous_format if where == "planes" else ROWS
    block = SEResNeXtBottleneck(16, 4, stride=1, cardinality=2, base_width=64, reduction=4).to(memory_format=layout)
    x = torch.randn(2, 16, 5, 5).to(memory_format=layout)
    if where in ("frozen", "evaluation"):
        block.eval()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"),
        torch.set_grad_enabled(where != "evaluation"),
    ):
        ending = type(block(x).grad_fn).__name__
    assert (ending == "_EndBackward") == (where == "rows"), ending
