"""Running statistics that must not change. tests/training/test_step.py tests the mean over replicas."""

import copy

import pytest
import torch
from torch import nn

from seresnext.distributed import BatchNormStatistics, World


def run_step(model, accumulation, images):
    statistics = BatchNormStatistics(model, accumulation)
    statistics.begin_step()
    for _ in range(accumulation):
        statistics.begin_micro_batch()
        model(images)
    statistics.end_step(World(), torch.zeros(1))
    return statistics


def test_layers_in_evaluation_mode_keep_their_statistics_to_the_bit():
    """In floating point 7 * x / 7 is not always x."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(4).eval(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    numbers = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    inexact = [x for x in numbers if sum([x] * 7) / 7 != x]
    model[0].running_var.copy_(torch.stack(inexact[:4]))
    before = model[0].running_var.clone()
    run_step(model, 7, torch.randn(4, 4, 6, 6))
    assert torch.equal(model[0].running_var, before)
    assert model[2].num_batches_tracked == 1


@pytest.mark.parametrize("net", [nn.Linear(2, 2), nn.BatchNorm1d(2).eval()], ids=["none", "frozen"])
def test_without_batchnorm_in_training_nothing_changes(net):
    before = copy.deepcopy(net.state_dict())
    run_step(net, 2, torch.ones(3, 2)).undo_if(torch.tensor(1.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
