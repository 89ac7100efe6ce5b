"""Schedules against torch's own schedulers, step by step."""

from typing import get_args

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR, StepLR

from seresnext.recipe.schema import ScheduleSection
from seresnext.training.schedule import SCHEDULES, Schedule


def lrs_of_torch(scheduler_of, steps, peak=0.6):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = scheduler_of(optimizer)
    lrs = []
    for _ in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def test_the_schema_has_the_names_of_the_table():
    assert get_args(ScheduleSection.model_fields["name"].annotation) == tuple(SCHEDULES)


def test_step_equals_torch_step_lr():
    schedule = Schedule("step", peak=0.6, total=100, every=30, factor=0.1)
    expected = lrs_of_torch(lambda optimizer: StepLR(optimizer, 30, 0.1), 100)
    assert [schedule.lr_at(step) for step in range(100)] == pytest.approx(expected, rel=1e-12)


def test_cosine_equals_torch_cosine_annealing():
    schedule = Schedule("cosine", peak=0.6, total=80, final=0.01)
    expected = lrs_of_torch(lambda optimizer: CosineAnnealingLR(optimizer, 80, 0.01), 80)
    assert [schedule.lr_at(step) for step in range(80)] == pytest.approx(expected, rel=1e-9)


def test_cosine_after_warmup_equals_torch_sequence():
    def warm_then_cosine(optimizer):
        warm = LinearLR(optimizer, 1 / 10, 1.0, total_iters=9)
        return SequentialLR(optimizer, [warm, CosineAnnealingLR(optimizer, 70)], milestones=[10])

    schedule = Schedule("cosine", peak=0.6, total=80, warmup=10)
    expected = lrs_of_torch(warm_then_cosine, 80)
    assert [schedule.lr_at(step) for step in range(80)] == pytest.approx(expected, rel=1e-9)


def test_linear_equals_torch_linear():
    schedule = Schedule("linear", peak=0.6, total=80, final=0.06)
    expected = lrs_of_torch(lambda optimizer: LinearLR(optimizer, 1.0, 0.1, total_iters=80), 80)
    assert [schedule.lr_at(step) for step in range(80)] == pytest.approx(expected, rel=1e-9)
    cosine = Schedule("cosine", peak=0.6, total=80, final=0.06)
    assert cosine.lr_at(20) != pytest.approx(expected[20], rel=1e-2)


def test_linear_after_warmup_equals_torch_sequence():
    def warm_then_linear(optimizer):
        warm = LinearLR(optimizer, 1 / 10, 1.0, total_iters=9)
        return SequentialLR(optimizer, [warm, LinearLR(optimizer, 1.0, 0.0, total_iters=70)], milestones=[10])

    schedule = Schedule("linear", peak=0.6, total=80, warmup=10)
    expected = lrs_of_torch(warm_then_linear, 80)
    assert [schedule.lr_at(step) for step in range(80)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_rises_linearly_and_ends_at_the_peak(name):
    schedule = Schedule(name, peak=0.5, total=100, warmup=8, every=30, factor=0.1)
    assert [schedule.lr_at(step) for step in range(8)] == pytest.approx([0.5 * (n + 1) / 8 for n in range(8)])
    assert schedule.lr_at(8) == 0.5


def test_the_last_step_has_a_learning_rate_above_zero():
    """The control: if the total were wrong by one, the last step of a cosine would have rate 0."""
    schedule = Schedule("cosine", peak=0.6, total=80)
    assert schedule.lr_at(79) > 0
    assert schedule.lr_at(80) == 0
