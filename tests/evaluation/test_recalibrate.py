"""Recalibrated BatchNorm statistics equal those of torch's `update_bn`."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.evaluation import recalibrate
from seresnext.runtime import PRECISIONS


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    net = net.double()
    net(torch.randn(8, 3, 6, 6).double() * 3)  # This updates the running statistics.
    return net


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(4, 3, 6, 6, generator=generator).double() * (n + 1) for n in range(6)]
    return [DeviceBatch(x, torch.zeros(4, dtype=torch.int64), n, 0, 0.0) for n, x in enumerate(images)]


def run(model, batches, world=None, **options):
    return recalibrate(model, iter(batches), world=world or World(), precision=PRECISIONS["fp64"], **options)


def statistics(model):
    return [tensor for name, tensor in model.named_buffers() if "running" in name]


def test_statistics_are_those_of_torch(model, batches):
    other, old = copy.deepcopy(model), copy.deepcopy(model)
    for _ in range(2):  # The result does not depend on the old statistics.
        assert run(model, batches)
    update_bn([batch.images for batch in batches], other)
    for mine, theirs, before in zip(statistics(model), statistics(other), statistics(old), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(mine, before)


def test_nothing_else_changes(model, batches):
    before = copy.deepcopy(model.state_dict())
    model.eval()
    run(model, batches)
    assert not model.training
    assert not model[1].training
    assert (model[1].momentum, int(model[1].num_batches_tracked)) == (0.1, 1)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_ranks_add_up(model, batches):
    """The fake worlds record the sum of each rank, and then return the sum over both ranks."""
    alone, sums = copy.deepcopy(model), []
    run(alone, batches)
    for rank in range(2):
        world = SimpleNamespace(size=2, device=torch.device("cpu"), any=lambda flag: flag)
        world.sum_ = lambda flat: sums.append(flat.clone()) or flat
        run(copy.deepcopy(model), batches[rank::2], world)
    both = SimpleNamespace(size=2, device=torch.device("cpu"), any=lambda flag: flag, sum_=lambda _: sums[0] + sums[1])
    run(model, batches[::2], both)
    for mine, theirs in zip(statistics(model), statistics(alone), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_a_stop_leaves_the_model_unchanged(model, batches):
    before = copy.deepcopy(model.state_dict())
    answers = iter([False, False, True])
    assert run(model, batches, stop_requested=lambda: next(answers)) is False
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model[1].momentum == 0.1
    assert model.training


def test_dropout_is_off_and_frozen_layers_stay(batches):
    class Frozen(nn.Module):
        """A network with a frozen layer."""

        def __init__(self):
            super().__init__()
            self.norm, self.dropout, self.after = nn.BatchNorm2d(3), nn.Dropout(0.9), nn.BatchNorm2d(3)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

        def forward(self, x):
            return self.after(self.dropout(self.norm(x)))

    model = Frozen().double()
    run(model, batches)
    assert torch.equal(model.norm.running_mean, torch.zeros(3).double())
    means = torch.stack([model.norm.eval()(batch.images).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(model.after.running_mean, means.detach())
