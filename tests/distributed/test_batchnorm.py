"""Running statistics over logical replicas, against the mean of replicas computed one by one."""

import copy

import pytest
import torch
from torch import nn

from seresnext.distributed import BatchNormStatistics, World


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    net(torch.randn(8, 3, 6, 6) * 3)  # Return a model whose running statistics differ from the initial values.
    return net


@pytest.fixture
def micro_batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 6, 6, generator=generator) * (i + 1) for i in range(3)]


def run_step(model, micro_batches):
    statistics = BatchNormStatistics(model, len(micro_batches))
    statistics.begin_step()
    for images in micro_batches:
        statistics.begin_micro_batch()
        model(images)
    return statistics.end_step(World(), torch.tensor([1.0, 2.0]))


def test_updates_are_averaged_from_the_steps_old_statistics_and_a_step_counts_once(model, micro_batches):
    """Control: plain BatchNorm starts each micro-batch from the result of the micro-batch before."""
    alone, plain = [copy.deepcopy(model) for _ in micro_batches], copy.deepcopy(model)
    for net, images in zip(alone, micro_batches, strict=True):
        net(images)
        plain(images)
    run_step(model, micro_batches)
    for layer in (1, 4):
        for name in ("running_mean", "running_var"):
            expected = torch.stack([getattr(net[layer], name) for net in alone]).mean(0)
            assert torch.allclose(getattr(model[layer], name), expected, rtol=1e-6)
        assert model[layer].num_batches_tracked == 2
    assert not torch.allclose(model[1].running_var, plain[1].running_var, rtol=1e-2)


def test_one_micro_batch_is_plain_batchnorm(model, micro_batches):
    plain = copy.deepcopy(model)
    plain(micro_batches[0])
    report = run_step(model, micro_batches[:1])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    assert report.tolist() == [1.0, 2.0]


def test_layers_in_evaluation_mode_keep_their_statistics_to_the_bit(model, micro_batches):
    """In floating point 7 * x / 7 is not always x."""
    model[1].eval()
    numbers = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    inexact = [x for x in numbers if sum([x] * 7) / 7 != x]
    model[1].running_var.copy_(torch.stack(inexact[:4]))
    before = model[1].running_var.clone()
    run_step(model, 7 * micro_batches[:1])
    assert torch.equal(model[1].running_var, before)
    assert model[4].num_batches_tracked == 2


@pytest.mark.parametrize("net", [nn.Linear(2, 2), nn.BatchNorm1d(2).eval()], ids=["none", "frozen"])
def test_without_batchnorm_in_training_nothing_changes(net):
    before = copy.deepcopy(net.state_dict())
    statistics = BatchNormStatistics(net, 2)
    statistics.begin_step()
    for _ in range(2):
        statistics.begin_micro_batch()
        net(torch.ones(3, 2))
    statistics.end_step(World(), torch.zeros(1))
    statistics.undo_if(torch.tensor(1.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
