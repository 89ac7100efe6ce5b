"""The messages about steps and validations that are not finite, and the history of a run."""

import json
import math

import pytest

from seresnext.training.nonfinite import (
    NONFINITE_VALIDATION,
    NonFiniteStep,
    describe_skip,
    nonfinite_validation,
    record,
)
from seresnext.training.plan import Progress
from seresnext.training.result import StepResult


def names(step, replica):
    return [f"{step}/{replica}/{n}.jpg" for n in range(2)]


def test_a_loss_names_micro_batches_and_a_gradient_does_not():
    skip = describe_skip(StepResult(4, (1.0, math.nan, math.inf), math.nan, 0.0, False, skipped=True), names)
    assert (skip.step, skip.reason) == (5, "the loss is nan in micro-batches 2, 3 of 3")
    assert skip.samples == ["4/1/0.jpg", "4/1/1.jpg", "4/2/0.jpg", "4/2/1.jpg"]
    skip = describe_skip(StepResult(4, (1.0, 1.0), math.inf, 0.0, False, skipped=True), names)
    assert (skip.reason, len(skip.samples)) == ("the gradient's norm is inf", 4)


def test_the_history_is_short_plain_data():
    samples = [f"{n}.jpg" for n in range(20)]
    old = [{"step": step} for step in range(2000)]
    new = record(old, 5, "why", samples)
    assert json.loads(json.dumps(new, allow_nan=False)) == new
    assert new == [*old[-999:], {"step": 5, "reason": "why", "samples": samples[:16]}]
    assert len(old) == 2000
    assert NonFiniteStep(5, "why", samples).warning.splitlines()[-2:] == ["  15.jpg", "  ... and 4 more"]
    assert "more" not in NonFiniteStep(5, "why", ["0.jpg"]).warning


# ------------------------------------------------------------------------------------------------ validations


@pytest.mark.parametrize(
    ("bad", "best", "steps"),
    [([], 1, None), ([2], 1, None), ([2, 3], 1, "3"), ([2], 2, "2"), ([2, 3], 2, "2 and 3"), ([3], 3, "3")],
)
def test_a_warning_about_a_last_or_best_validation_that_is_not_finite(bad, best, steps):
    """Three validations. A skipped step is no validation after this step."""
    history = record([], 1, "the loss is nan in micro-batch 1 of 2", ["a.jpg"])
    for step in bad:
        history = record(history, step, NONFINITE_VALIDATION)
    warning = nonfinite_validation(Progress(3, 3, {"step": best, "top1": 1.0}, history=history))
    assert warning == (steps and f"the validation loss is not finite after step {steps}")
