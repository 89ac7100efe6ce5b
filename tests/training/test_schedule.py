"""Schedules against torch's own schedulers, step by step."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR, StepLR

from seresnext.training.schedule import SCHEDULES, Schedule

PEAK = 0.6


def after_warmup(decay_of):
    """Return a builder of torch's scheduler with a warm-up of 10 steps."""
    return lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 1 / 10, 1.0, total_iters=9), decay_of(optimizer)], milestones=[10]
    )


CASES = {
    "step": ({"every": 30, "factor": 0.1}, lambda optimizer: StepLR(optimizer, 30, 0.1)),
    "cosine": ({"final": 0.01}, lambda optimizer: CosineAnnealingLR(optimizer, 80, 0.01)),
    "linear": ({"final": 0.06}, lambda optimizer: LinearLR(optimizer, 1.0, 0.1, total_iters=80)),
    "cosine, warm-up": ({"warmup": 10}, after_warmup(lambda optimizer: CosineAnnealingLR(optimizer, 70))),
    "linear, warm-up": ({"warmup": 10}, after_warmup(lambda optimizer: LinearLR(optimizer, 1.0, 0.0, total_iters=70))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_schedule_equals_torchs(case):
    settings, scheduler_of = CASES[case]
    schedule = Schedule(case.partition(",")[0], peak=PEAK, total=80, **settings)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler, expected = scheduler_of(optimizer), []
    for _ in range(80):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [schedule.lr_at(step) for step in range(80)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_rises_linearly_and_ends_at_the_peak(name):
    schedule = Schedule(name, peak=0.5, total=100, warmup=8, every=30, factor=0.1)
    assert [schedule.lr_at(step) for step in range(8)] == pytest.approx([0.5 * (n + 1) / 8 for n in range(8)])
    assert schedule.lr_at(8) == 0.5
