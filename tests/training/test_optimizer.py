"""Which parameters get weight decay, and that the optimizer is torch's SGD."""

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from seresnext.models import create_model
from seresnext.training.optimizer import set_lr, sgd, skip_if


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def decays(optimizer):
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def options(**changes):
    return {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "decay_norm_and_bias": True} | changes


def test_everything_decays_as_in_the_published_recipe():
    net = model()
    assert set(decays(sgd(net, **options())).values()) == {1e-4}
    assert len(decays(sgd(net, **options()))) == len(list(net.parameters()))


def test_vectors_can_be_spared():
    net = model()
    found = decays(sgd(net, **options(decay_norm_and_bias=False)))
    assert {name: found[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": 1e-4, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 1e-4, "3.bias": 0.0,
    }  # fmt: skip


def test_on_the_real_network_timm_spares_the_same():
    net = create_model("seresnext26")
    names = {id(p): name for name, p in net.named_parameters()}

    def by_decay(groups):
        return {group["weight_decay"]: sorted(names[id(p)] for p in group["params"]) for group in groups}

    ours = by_decay(sgd(net, **options(decay_norm_and_bias=False)).param_groups)
    assert ours == by_decay(param_groups_weight_decay(net, weight_decay=1e-4))
    assert sum(map(len, ours.values())) == len(names)
    assert "layer1.0.se_module.fc1.bias" in ours[0.0]
    assert "layer1.0.downsample.1.weight" in ours[0.0]
    everything = by_decay(sgd(net, **options()).param_groups)  # The control.
    assert everything == {1e-4: sorted(names.values())}


def test_frozen_parameters_are_left_out():
    net = model()
    net[0].requires_grad_(False)
    assert id(net[0].weight) not in decays(sgd(net, **options()))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_steps_are_torchs(nesterov, fused):
    """Bit for bit those of the fused kernel, the first from momentum of zeros too; the plain one rounds otherwise."""
    ours, theirs = model(), model()
    optimizer = sgd(ours, **options(nesterov=nesterov))
    reference = torch.optim.SGD(
        theirs.parameters(), lr=0.05, momentum=0.9, nesterov=nesterov, weight_decay=1e-4, fused=fused
    )
    set_lr(optimizer, 0.05)
    for net, steps in ((ours, optimizer), (theirs, reference)):
        for number in range(3):
            steps.zero_grad()
            net(torch.ones(2, 3, 3, 3)).square().sum().backward()
            if steps is optimizer and number:  # Told to go on is as good as told nothing.
                skip_if(steps, torch.tensor(0.0))
            steps.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        if fused:
            assert torch.equal(mine, other)
        else:
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_can_be_skipped_also_the_first(momentum):
    net = model()
    optimizer = sgd(net, **options(momentum=momentum))
    for _ in range(2):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)
        before = [p.clone() for p in net.parameters()]
        skip_if(optimizer, torch.tensor(1.0))
        optimizer.step()
        assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
        buffers = [optimizer.state[p].get("momentum_buffer") for p in net.parameters()]
        assert all(buffer.count_nonzero() == 0 for buffer in buffers) if momentum else buffers == [None] * len(buffers)
    skip_if(optimizer, torch.tensor(0.0))
    optimizer.step()
    assert all(p.isnan().all() for p in net.parameters())  # The control.
