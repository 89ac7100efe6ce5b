"""The measurements of a dry run, and median, range and rates. tests/runs/test_mistakes.py has whole dry runs."""

import math
from pathlib import Path

import pytest
import torch
from stand_in_run import Run

from seresnext.run.dry_run import Spread, duration, number, peak_memory, time_steps, time_validation


@pytest.mark.parametrize("total", [8, 2, 1])
def test_a_dry_run_takes_some_steps_and_one_batch(total):
    """A dry run also finds a loss that is not finite."""
    run = Run(total=total, weights=("model", "ema"), loss_of=lambda step: (1.0, math.nan if step == 0 else 1.0))
    seconds = time_steps(run.trainer)
    assert len(seconds) == max(min(total, 5) - 1, 1)  # The first step warms up.
    assert min(*seconds, time_validation(run.trainer), 1.0) > 0
    assert run.what("step", "read") == " ".join(f"step{number} read{number}" for number in range(min(total, 5)))
    assert [logits.calls for logits in run.models.values()] == [1, 1]
    assert run.what("save", "train", "validate") == ""
    assert run.logger.bars == []
    assert run.logger.texts[0].startswith("warning: the loss is nan in micro-batch 2 of 2 in step 1")


def test_median_and_range():
    spread = Spread.of([3.0, 1.0, 2.0, 50.0, 2.5])
    assert spread == (2.5, 1.0, 50.0)
    assert spread.text() == "2.5 (1 to 50)"
    assert Spread.of([2.0]).text() == "2"
    assert spread.times(2, 1) == (6.0, 3.0, 101.0)


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (number, 0.01234, "0.0123"),
        (number, 100.4, "100"),
        (number, 16_700.0, "16,700"),
        (duration, 61.4, "0:01:01"),
        (duration, 864_000, "10.0 days"),
    ],
)
def test_numbers_and_durations(form, value, text):
    assert form(value) == text


def test_the_rate_of_the_longest_time_is_the_lowest():
    assert Spread(2.0, 1.0, 4.0).rate(8) == (4.0, 2.0, 8.0)


def test_the_peak_of_memory_is_at_least_the_memory_in_use():
    lines = Path("/proc/self/status").read_text().splitlines()
    (in_use,) = [1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    assert 0.9 * in_use < peak_memory(torch.device("cpu")) < 100 * in_use
