"""Oracle: timm's networks of the same names, with the same weights, in float32 on the CPU."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from seresnext.models import MODELS, SENet, create_model, timm_state_dict
from seresnext.models.blocks import SEResNeXtBottleneck

SMALL = "legacy_seresnext26_32x4d"
Pair = tuple[SENet, nn.Module]
# In channels_last on a CPU the kernels of cpu.py train.
in_planes_and_rows = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def mixed_up(model: nn.Module) -> None:
    """Set weights and statistics as after some training: no initial values, and activations of moderate size."""
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.weight, 0.5, 1.0)
                uniform(module.bias, -0.2, 0.2)
                uniform(module.running_mean, -0.2, 0.2)
                uniform(module.running_var, 0.5, 1.5)


# The 101 differ from the 50 in the number of blocks only.
LONG = [pytest.param(name, marks=pytest.mark.full) if "101" in name else name for name in MODELS]


@pytest.fixture(scope="module", params=LONG)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Return this project's model and timm's model with the same weights."""
    torch.manual_seed(0)
    ours = create_model(request.param)
    mixed_up(ours)
    theirs = timm.create_model(request.param, drop_rate=0.0)
    theirs.load_state_dict(timm_state_dict(ours))
    return ours, theirs


def images(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_keys_and_their_order(pair: Pair) -> None:
    ours, theirs = timm_state_dict(pair[0]), pair[1].state_dict()
    assert list(ours) == list(theirs)
    assert [tensor.shape for tensor in ours.values()] == [tensor.shape for tensor in theirs.values()]
    if pair[0].stem_pool == "ceil":
        assert list(ours) == list(pair[0].state_dict())


@pytest.mark.parametrize("mode", ["eval", pytest.param("train", marks=pytest.mark.full)])
@pytest.mark.parametrize("size", [pytest.param((224, 224), marks=pytest.mark.full), (193, 257)])
def test_logits(pair: Pair, size: tuple[int, int], mode: str) -> None:
    x = images(*size, count=1 if mode == "eval" else 4)
    with torch.no_grad():
        ours, theirs = (copy.deepcopy(model).train(mode == "train")(x) for model in pair)
    assert ours.abs().max() > 0.1, "logits this small always agree"
    assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    # In single precision, other rounding than timm's changes the gradients of the stem by a percent.
    ("layout", "dtype", "tolerance"),
    [(torch.contiguous_format, torch.float32, 1e-4), (torch.channels_last, torch.float64, 1e-9)],
    ids=["planes", "rows"],
)
@pytest.mark.full
def test_gradients_and_running_statistics(
    pair: Pair, layout: torch.memory_format, dtype: torch.dtype, tolerance: float
) -> None:
    """In training mode, after one backward pass and one step of SGD."""
    # Three images and a small odd size: statistics over few values are the hardest to agree on.
    x, labels = images(97, 65, 3).to(dtype, memory_format=layout), torch.tensor([3, 900, 41])
    ours, theirs = (copy.deepcopy(model).to(dtype) for model in pair)
    ours.to(memory_format=layout)
    for model in (ours, theirs):
        model.train()
        nn.functional.cross_entropy(model(x), labels).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.grad.norm() > 0, name
        assert (a.grad - b.grad).norm() <= tolerance * b.grad.norm(), name
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert_close(a, b, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def move_stride(model: SENet) -> None:
    block = model.layer2[0]
    block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "pool0", nn.MaxPool2d(3, stride=2, padding=1)),
        move_stride,
        lambda model: setattr(model.layer4[1], "se_module", nn.Identity()),
    ],
    ids=["pooling", "stride", "excitation"],
)
def test_small_changes_break_parity(change: Callable[[SENet], None]) -> None:
    """The negative control: variants of other ResNets with the same keys and shapes."""
    torch.manual_seed(0)
    model = create_model(SMALL).eval()
    mixed_up(model)
    x = images(193, 257)
    with torch.no_grad():
        before = model(x)
        change(model)
        assert (model(x) - before).abs().max() > 1e-4


def test_features_and_head_make_the_model() -> None:
    model = create_model(SMALL, num_classes=7).eval()
    x = images(97, 64, 2)
    features = model.forward_features(x)
    assert features.shape == (2, 2048, 3, 2)
    assert torch.equal(model.forward_head(features), model(x))
    assert model(x).shape == (2, 7)


def test_reset_classifier() -> None:
    model = create_model(SMALL).double()
    model.reset_classifier(5)
    assert model.num_classes == 5
    assert model(images(64, 64, 2).double()).shape == (2, 5)
    model.reset_classifier(0)
    assert model(images(64, 64, 2).double()).shape == (2, 2048)
    assert "last_linear.weight" not in model.state_dict()


def test_initialisation() -> None:
    """Kaiming normal by fan-out, groups not considered, for convolutions; torch's defaults for the rest."""
    torch.manual_seed(0)
    model = create_model("seresnext50")
    ratios = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel()
            ratios.append((module.weight.std() / (2 / fan_out) ** 0.5, module.weight.numel(), name))
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    for ratio, count, name in ratios:
        assert abs(ratio - 1) < 5 * (2 * count) ** -0.5, name  # Five deviations of an estimated deviation.
    bound = 2048**-0.5
    assert bound * 0.99 < model.last_linear.weight.abs().max() <= bound


def test_zero_init_last_makes_every_block_its_shortcut() -> None:
    torch.manual_seed(0)
    model = create_model(SMALL, zero_init_last=True).eval()
    blocks = [module for module in model.modules() if isinstance(module, SEResNeXtBottleneck)]
    assert len(blocks) == 8
    assert all((block.bn3.weight == 0).all() for block in blocks)
    x = torch.rand(1, 256, 8, 8)
    assert torch.equal(model.layer1[1](x), x)


def test_dropout_is_before_the_classifier_and_only_in_training() -> None:
    model = create_model(SMALL, drop_rate=0.2)
    model.last_linear = nn.Identity()
    features = torch.ones(64, 2048, 1, 1)
    torch.manual_seed(0)
    dropped = model.train().forward_head(features)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert abs((dropped == 0).float().mean() - 0.2) < 0.01
    assert torch.equal(model.eval().forward_head(features), torch.ones(64, 2048))


@pytest.mark.gpu
def test_parity_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kernels run in the same order as in timm's, so logits and gradients agree as on the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    ours = create_model(SMALL)
    mixed_up(ours)
    theirs = timm.create_model(SMALL, drop_rate=0.0)
    theirs.load_state_dict(ours.state_dict())
    x = images(193, 257, count=2).cuda()
    logits = []
    for model in (ours.cuda().train(), theirs.cuda().train()):
        logits.append(model(x))
        logits[-1].square().sum().backward()
    assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-4 * other.grad.norm(), name


# ------------------------------------------------------------------------------------------------ stochastic depth


def small(**options) -> SENet:
    """Return a network of six blocks, narrower than all published networks."""
    torch.manual_seed(0)
    model = SENet((2, 1, 1, 2), num_classes=5, cardinality=4, **options).double()
    mixed_up(model)
    return model


def test_drop_path_rates_grow_linearly_to_the_last_block() -> None:
    """Huang et al. 2016, eq. 4: with L blocks, block number l survives with 1 - l / L * (1 - p_L)."""
    rates = [m.drop_path_rate for m in small(drop_path_rate=0.4).modules() if isinstance(m, SEResNeXtBottleneck)]
    assert [1 - rate for rate in rates] == pytest.approx([1 - number / 6 * (1 - 0.6) for number in range(1, 7)])


@in_planes_and_rows
def test_drop_path_is_timms(layout: torch.memory_format) -> None:
    block = small(drop_path_rate=0.5).to(memory_format=layout).layer4[1]
    assert isinstance(block, SEResNeXtBottleneck)
    x = torch.randn(16, 2048, 2, 2, dtype=torch.float64).to(memory_format=layout)
    torch.manual_seed(7)
    ours = block(x)
    torch.manual_seed(7)
    branch = block.bn3(block.conv3(block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()))
    theirs = (timm.layers.drop_path(block.se_module(branch), 0.5, training=True) + x).relu()
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert (type(ours.grad_fn).__name__ == "_BlockEndBackward") == (layout is torch.channels_last)
    skipped = (ours == x.relu()).flatten(1).all(1)
    assert 0 < skipped.sum() < 16


@pytest.mark.full
def test_drop_path_does_not_change_evaluation() -> None:
    x = images(32, 32, count=4).double()
    assert torch.equal(small().eval()(x), small(drop_path_rate=0.5).eval()(x))


# ------------------------------------------------------------------------------------------------ checkpointing


def train_once(model: SENet, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    torch.manual_seed(5)
    loss = model(x).square().mean()
    loss.backward()
    return loss, [parameter.grad for parameter in model.parameters()]


@in_planes_and_rows
def test_checkpointing_changes_no_bit_of_loss_gradients_and_statistics(layout: torch.memory_format) -> None:
    x = images(32, 32, count=3).double().to(memory_format=layout)
    results, models = [], []
    for on in (False, True):
        model = small(drop_rate=0.3, drop_path_rate=0.4).to(memory_format=layout)
        model.grad_checkpointing = on
        results.append(train_once(model, x))
        models.append(model)
    (loss, gradients), (other_loss, other_gradients) = results
    assert torch.equal(loss, other_loss)
    assert all(map(torch.equal, gradients, other_gradients))
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
    counts = {int(t) for name, t in models[1].state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {1}


def test_recomputation_with_torchs_contexts_updates_the_statistics_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: torch's own contexts do not restore the statistics."""
    monkeypatch.setattr("seresnext.models.senet._recomputation", lambda block: (nullcontext(), nullcontext()))
    model = small()
    model.grad_checkpointing = True
    train_once(model, images(32, 32, count=3).double())
    assert int(model.layer1[0].bn1.num_batches_tracked) == 2  # pyright: ignore
    assert int(model.layer0.bn1.num_batches_tracked) == 1  # pyright: ignore


def test_the_backward_pass_runs_each_block_again() -> None:
    model = small()
    model.grad_checkpointing = True
    blocks = [module for module in model.modules() if isinstance(module, SEResNeXtBottleneck)]
    calls: list[nn.Module] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: calls.append(module))
    train_once(model, images(32, 32, count=2).double())
    assert calls == [*blocks, *reversed(blocks)]


def test_evaluation_and_no_grad_are_not_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seresnext.models.senet.checkpoint", None)
    model = small()
    model.grad_checkpointing = True
    with torch.no_grad():
        model(images(32, 32).expand(2, -1, -1, -1).double())
    model.eval()(images(32, 32).double())
    with pytest.raises(TypeError):
        model.train()(images(32, 32, count=2).double())


# ------------------------------------------------------------------------------------------------ frozen stages


def test_frozen_stages_learn_nothing_and_their_statistics_stay() -> None:
    model = small(drop_path_rate=0.2)
    model.freeze(["layer0", "layer2"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    model.train()
    train_once(model, images(32, 32, count=3).double())
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    changed = {name.partition(".")[0] for name, tensor in model.state_dict().items() if not before[name].equal(tensor)}
    assert changed == {"layer1", "layer3", "layer4", "last_linear"}
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None} == changed


@in_planes_and_rows
def test_a_frozen_stage_computes_as_in_evaluation(layout: torch.memory_format) -> None:
    model = small().to(memory_format=layout)
    model.freeze(["layer1"])
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64).to(memory_format=layout)
    frozen = model.layer1(x)
    assert torch.equal(frozen, model.eval().layer1(x))
    assert not torch.allclose(frozen, small().layer1(x))  # The control: a stage that trains.
