"""The optimizers: weight decay, steps equal to torch's, and state by name."""

import copy

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from seresnext.models import create_model
from seresnext.recipe.schema import OptimizerSection
from seresnext.training.optimizer import build_optimizer, optimizer_state, set_lr, share_step_count, skip_if

NAMES = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def build(net, **changes):
    return build_optimizer(net, OptimizerSection(**{"lr": 0.1, "weight_decay": 1e-2, **changes}))


def train(net, optimizer, steps, skip=None):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.ones(2, 3, 3, 3, dtype=net[0].weight.dtype)).square().sum().backward()
        if skip is not None:
            skip_if(optimizer, torch.tensor(skip))
        optimizer.step()


@pytest.mark.parametrize("model_name", ["legacy_seresnext26_32x4d", "seresnext26"])
def test_rates_by_stage_are_timms(model_name):
    """timm groups by block; with its coarse groups, a stage is a layer, and the stem has its own."""
    net = create_model(model_name)
    theirs = timm.create_model("legacy_seresnext26_32x4d")
    theirs.group_matcher = lambda coarse: {"stem": r"^layer0", "blocks": r"^layer(\d+)"}
    groups = param_groups_layer_decay(theirs, weight_decay=1e-2, layer_decay=0.75)
    names = {id(p): name for name, p in theirs.named_parameters()}
    expected = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    optimizer = build(net, layer_decay=0.75, decay_norm_and_bias=False)
    names = {id(p): name for name, p in net.named_parameters()}
    set_lr(optimizer, 0.2)
    found = {
        names[id(p)]: (group["lr"] / 0.2, group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found.keys() == expected.keys() == set(names.values())
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name
    assert len({rate for rate, _ in found.values()}) == 6


REFERENCES = {
    "sgd": ({}, torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": ({"nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adamw": ({"name": "adamw"}, torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "adamw, other betas": (
        {"name": "adamw", "betas": [0.8, 0.95], "eps": 1e-6},
        torch.optim.AdamW,
        {"betas": (0.8, 0.95), "eps": 1e-6},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", REFERENCES)
def test_steps_are_torchs(case, fused, dtype):
    """Equal bits for the fused kernel, also for the first step; the other kernel rounds differently."""
    section, kind, options = REFERENCES[case]
    ours, theirs = model().to(dtype), model().to(dtype)
    optimizer = build(ours, **section)
    reference = kind(theirs.parameters(), lr=0.05, weight_decay=1e-2, fused=fused, **options)
    set_lr(optimizer, 0.05)
    train(ours, optimizer, 1)
    train(ours, optimizer, 2, skip=0.0)
    train(theirs, reference, 3)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        if fused:
            assert torch.equal(mine, other)
        else:
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_state_by_name():
    net = model()
    assert optimizer_state(net, build(net, momentum=0.0)) == {}
    assert list(optimizer_state(net, build(net))) == [f"momentum.{name}" for name in NAMES]
    adamw = optimizer_state(net, build(net, name="adamw"))
    assert adamw.keys() == {"step", *(f"{key}.{name}" for key in ("exp_avg", "exp_avg_sq") for name in NAMES)}
    assert adamw["step"].shape == ()


@pytest.mark.parametrize(
    ("section", "shares"), [({}, True), ({"name": "adamw"}, True), ({"name": "adamw"}, False)], ids=str
)
def test_restored_state_continues_the_run(section, shares):
    """The control: in torch each parameter has its own step count, so without `share_step_count` the run differs."""
    whole, resumed = model(), model()
    optimizer, other = build(whole, **section), build(resumed, **section)
    train(whole, optimizer, 3, skip=0.0)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    live, saved = optimizer_state(resumed, other), optimizer_state(whole, optimizer)
    for name, tensor in live.items():
        tensor.copy_(saved[name])
    if shares:
        share_step_count(other, live)
    train(whole, optimizer, 2)
    train(resumed, other, 2)
    assert shares is all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
