"""The CPU training kernels, compared with torch's own modules and with finite differences, and who may meet them."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from seresnext.models import cpu, create_model
from seresnext.models.blocks import SEResNeXtBottleneck, SqueezeExcitation

ROWS, PLANES = torch.channels_last, torch.contiguous_format
CHANNELS = 6  # The last vector of the processor is not full.


def gradients(forward, conv, x):
    """Output, and gradients of input and weight, of an arbitrary loss."""
    x = x.clone().requires_grad_()  # `clone` keeps the layout.
    y = forward(x, conv)
    return y, *torch.autograd.grad(y, (x, conv.weight), torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))


# ------------------------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_a_frozen_tensor_gets_no_gradient(frozen):
    conv = nn.Conv2d(4, 4, 1, bias=False)
    conv.weight.requires_grad_(frozen != "weight")
    x = torch.randn(2, 4, 5, 5).to(memory_format=ROWS).requires_grad_(frozen != "input")
    cpu._pointwise(x, conv).sum().backward()
    assert (x.grad is None, conv.weight.grad is None) == (frozen == "input", frozen == "weight")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "channels", "groups", "size"),
    [
        *((1, 8, 1, size) for size in ((7, 7), (8, 6), (1, 1))),
        *((3, channels, groups, (8, 7)) for channels, groups in ((16, 4), (128, 32), (12, 3), (4, 1), (32, 4))),
    ],
)
def test_a_kernel_is_a_convolution(kernel, channels, groups, size, stride):
    torch.manual_seed(0)
    out_channels = 12 if kernel == 1 else channels
    conv = nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    conv = conv.double().to(memory_format=ROWS)
    x = torch.randn(3, channels, *size, dtype=torch.float64).contiguous(memory_format=ROWS)
    ours = gradients(cpu._pointwise if kernel == 1 else cpu._grouped, conv, x)
    for one, other in zip(ours, gradients(lambda x, conv: conv(x), conv, x), strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)
    if kernel == 1:
        assert all(each.is_contiguous(memory_format=ROWS) for each in ours)
        assert ours[2].stride() == conv.weight.stride()
    else:
        paired = channels == 4 * groups and groups % 2 == 0
        assert ours[0].grad_fn._saved_groups == (groups // 2 if paired else groups)


# ------------------------------------------------------------------------------------------------ end of the block


@pytest.fixture(params=["whole batch", "image by image"])
def sums(request, monkeypatch):
    """Run a test with both ways to compute the sums over maps."""
    monkeypatch.setattr(cpu, "_KERNEL_PER_IMAGE", {"whole batch": 1 << 40, "image by image": 0}[request.param])


class End(nn.Module):
    """BatchNorm and squeeze-and-excitation as after some training: nothing is at its initial value."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.squeeze = nn.BatchNorm2d(CHANNELS, momentum=0.3), SqueezeExcitation(CHANNELS, reduction=2)
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
            nn.init.normal_(tensor)
        self.double().to(memory_format=ROWS)


class Fused(End):
    def forward(self, x, shortcut, mask=None):
        return cpu.block_end(x, shortcut, self.norm, self.squeeze, mask)


class Modules(End):
    def forward(self, x, shortcut, mask=None):
        branch = self.squeeze(self.norm(x))
        return (branch + shortcut if mask is None else branch * mask + shortcut).relu()


def maps(count, height, width):
    """Return random maps with a mean that is not small compared to the deviation."""
    return (torch.randn(count, CHANNELS, height, width, dtype=torch.float64) * 2 + 3).to(memory_format=ROWS)


def learn(end, x, shortcut, mask=None):
    """Return all results of a step: output, gradients of maps and parameters, statistics."""
    x, shortcut = x.clone().requires_grad_(), shortcut.clone().requires_grad_()
    output = end(x, shortcut, mask)
    output.backward(torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output))
    found = {"output": output.detach(), "x": x.grad, "shortcut": shortcut.grad, **end.state_dict()}
    return found | {f"gradient of {name}": parameter.grad for name, parameter in end.named_parameters()}


DROPPED = torch.tensor([0.0, 2.0, 2.0], dtype=torch.float64)[:, None, None, None]


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("mask", [None, DROPPED], ids=["all", "dropped"])
@pytest.mark.parametrize("size", [(7, 7), (8, 6), (1, 1)])
def test_the_fused_end_equals_the_modules(size, mask):
    x, shortcut = maps(3, *size), maps(3, *size) - 3
    ours, theirs = learn(Fused(), x, shortcut, mask), learn(Modules(), x, shortcut, mask)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(ours[name], value, rtol=1e-11, atol=1e-11, msg=lambda message, name=name: f"{name}: {message}")
    assert ours["x"].is_contiguous(memory_format=ROWS)
    assert ours["output"].is_contiguous(memory_format=ROWS)


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("mean", [0, 20, 500])
def test_the_fused_end_is_as_precise_as_the_modules(mean):
    """In single precision, also with a mean that is large compared to the deviation. The oracle is double precision."""
    x, shortcut = (maps(4, 14, 14) + mean).float(), (maps(4, 14, 14) - 3).float()
    truth = learn(Modules(), x.double(), shortcut.double())

    def errors(end):
        found = learn(end.float(), x, shortcut)
        return {name: float((found[name] - value).abs().max() / value.abs().max()) for name, value in truth.items()}

    ours, theirs = errors(Fused()), errors(Modules())
    for name, error in ours.items():
        assert error <= max(2 * theirs[name], 1e-6), name


@pytest.mark.usefixtures("sums")
def test_a_nan_comes_through():
    """A lost NaN would make a failed step look like a good step."""
    x, shortcut = maps(3, 7, 7), maps(3, 7, 7)
    shortcut[-1, -1, -1, -1] = torch.nan
    output = Fused()(x.requires_grad_(), shortcut)
    assert output.isnan().nonzero().tolist() == [[2, CHANNELS - 1, 6, 6]]
    x.detach()[0, 0, 0, 0] = torch.nan
    output = Fused()(x, shortcut)
    assert output.isnan().all()  # BatchNorm spreads the NaN to the channel, squeeze-and-excitation to all channels.


# ------------------------------------------------------------------------------------------------ who meets the kernels


def bottleneck(layout=ROWS):
    torch.manual_seed(0)
    return SEResNeXtBottleneck(16, 4, stride=2, cardinality=2, base_width=64, reduction=4).to(memory_format=layout)


def uses_kernels(block, x):
    return type(block(x).grad_fn).__name__ == "_BlockEndBackward"


@pytest.mark.parametrize("where", ["rows", "planes", "autocast", "no grad"])
def test_kernels_serve_training_in_channels_last_only(where):
    layout = PLANES if where == "planes" else ROWS
    x = torch.randn(2, 16, 5, 5).to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"), torch.set_grad_enabled(where != "no grad"):
        assert uses_kernels(bottleneck(layout), x) == (where == "rows")


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layout", [PLANES, ROWS], ids=["planes", "rows"])
def test_hooks_of_all_submodules_fire(layout, mode):
    block = bottleneck(layout).train(mode == "train")
    x = torch.randn(2, 16, 5, 5).to(memory_format=layout)
    expected = [name for name, _ in block.named_modules() if name]
    assert len(expected) == 12
    fired = []
    for name in expected:
        block.get_submodule(name).register_forward_hook(lambda *_, name=name: fired.append(name))
    block(x)
    assert sorted(fired) == sorted(expected)


CHANGES = {
    "evaluation": lambda block: block.eval() and None,
    "frozen norm": lambda block: block.bn3.eval() and None,
    "hook": lambda block: block.conv3.register_forward_hook(lambda module, inputs, output: output * 0),
    "pre-hook": lambda block: block.se_module.fc1.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,)),
    "backward hook": lambda block: block.bn3.register_full_backward_hook(lambda module, ours, theirs: None),
    "global hook": lambda block: nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None),
    "own forward": lambda block: setattr(block.conv1, "forward", lambda x: nn.Conv2d.forward(block.conv1, x) * 0),
    "other class": lambda block: setattr(
        block, "conv2", type("Wrapped", (nn.Conv2d,), {})(8, 8, 3, 2, 1, groups=2, bias=False)
    ),
    "parametrization": lambda block: nn.utils.parametrizations.weight_norm(block.conv1) and None,
    "no excitation": lambda block: setattr(block, "se_module", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_block_trains_by_its_modules(change):
    block = bottleneck()
    x = torch.randn(2, 16, 5, 5).to(memory_format=ROWS)
    assert uses_kernels(copy.deepcopy(block), x)  # Copies train with kernels, too: the EMA copies a model that trains.
    handle = CHANGES[change](block)
    try:
        assert not uses_kernels(block, x)
    finally:
        if handle is not None:
            handle.remove()


@pytest.fixture(scope="module", params=[pytest.param(PLANES, marks=pytest.mark.full), ROWS], ids=["planes", "rows"])
def model_and_images(request):
    torch.manual_seed(0)
    model = create_model("seresnext26", num_classes=7).eval().to(memory_format=request.param)
    return model, torch.randn(2, 3, 40, 40).to(memory_format=request.param)


@pytest.mark.full
def test_trace_of_a_model_in_evaluation(model_and_images):
    """With gradients on, as `torch.jit.trace` is usually called: the kernels once broke the trace in channels_last."""
    model, images = model_and_images
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        traced = torch.jit.trace(model, images)
    assert torch.equal(traced(images), model(images))
    other = images[:1].clone(memory_format=torch.preserve_format)
    assert_close(traced(other), model(other))
    assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_export_sees_the_modules_operations(model_and_images, mode):
    model, images = model_and_images
    model = copy.deepcopy(model).train(mode == "train")
    program = torch.export.export(model, (images,))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("_add_relu" in target or "autograd" in target for target in targets)
    convolutions = [node for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    if mode == "eval":
        assert torch.equal(program.module()(images), model(images))


def test_a_kernel_in_evaluation_breaks_the_trace():
    """The control: a kernel whenever gradients are on, as in version 0.1. torch checks a trace without gradients."""
    block = bottleneck().eval()
    forward = block.conv1.forward
    block.conv1.forward = lambda x: cpu._pointwise(x, block.conv1) if torch.is_grad_enabled() else forward(x)
    x = torch.randn(2, 16, 5, 5).to(memory_format=ROWS)
    with warnings.catch_warnings(action="ignore"), pytest.raises(torch.jit.TracingCheckError):
        torch.jit.trace(block, x)
