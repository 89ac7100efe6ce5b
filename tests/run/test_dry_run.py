"""The measurements of a dry run. tests/runs/test_mistakes.py has whole dry runs."""

import math

import pytest
from stand_in_run import Run

from seresnext.run.dry_run import time_steps, time_validation


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
