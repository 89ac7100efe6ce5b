"""The messages about steps and validations that are not finite, and the history of a run."""

from __future__ import annotations

import json
import math

import pytest

from seresnext.training.nonfinite import NonFiniteStep, describe_skip, nonfinite_validation, record_validation
from seresnext.training.plan import Progress
from seresnext.training.result import StepResult


def names(step, replica):
    return [f"{step}/{replica}/{n}.jpg" for n in range(2)]


def test_a_loss_names_micro_batches_and_a_gradient_does_not():
    report = StepResult(4, (1.0, math.nan, math.inf), math.nan, 0.0, False, skipped=True)
    skip = describe_skip(report, names)
    assert (skip.step, skip.reason) == (5, "the loss is nan in micro-batches 2, 3 of 3")
    assert skip.samples == ["4/1/0.jpg", "4/1/1.jpg", "4/2/0.jpg", "4/2/1.jpg"]
    skip = describe_skip(StepResult(4, (1.0, 1.0), math.inf, 0.0, False, skipped=True), names)
    assert (skip.reason, len(skip.samples)) == ("the gradient's norm is inf", 4)


def test_the_history_is_short_plain_data():
    skip = NonFiniteStep(5, "why", [f"{n}.jpg" for n in range(20)])
    old = [{"step": 3}]
    assert skip.append_to(old) == [{"step": 3}, {"step": 5, "reason": "why", "samples": skip.samples[:16]}]
    assert old == [{"step": 3}]
    assert json.loads(json.dumps(skip.append_to(old), allow_nan=False)) == skip.append_to(old)
    many = [{"step": step} for step in range(2000)]
    assert [entry["step"] for entry in skip.append_to(many)] == [*range(1001, 2000), 5]
    assert skip.warning.splitlines()[-2:] == ["  15.jpg", "  ... and 4 more"]
    assert "more" not in NonFiniteStep(5, "why", ["0.jpg"]).warning


# ------------------------------------------------------------------------------------------------ validations


def warning_after(losses, best=1, history=()):
    """Return the warning about a run with these validation losses after steps 1, 2 and so on."""
    progress = Progress(history=list(history), best={"step": best, "top1": 1.0})
    for step, loss in enumerate(losses, 1):
        progress.history = record_validation(progress.history, step, loss)
        progress.evaluated = progress.step = step
    return nonfinite_validation(progress)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_warning_about_a_last_validation_that_is_not_finite(bad):
    assert warning_after([1.0, 2.0]) is None
    assert warning_after([]) is None
    assert warning_after([1.0, bad, 3.0]) is None
    for losses, best, steps in (([1.0, bad, bad], 1, "3"), ([1.0, bad, 3.0], 2, "2"), ([1.0, bad, bad], 2, "2 and 3")):
        assert warning_after(losses, best) == f"the validation loss is not finite after step {steps}"
    assert warning_after([1.0, bad], best=2) == "the validation loss is not finite after step 2"


def test_skipped_steps_give_no_warning():
    """An entry of a skipped step is no entry of a validation after this step."""
    skip = NonFiniteStep(2, "the loss is nan in micro-batch 1 of 2", ["a.jpg"])
    assert warning_after([1.0, 2.0], best=2, history=skip.append_to([])) is None


def test_the_history_keeps_its_size_and_is_replaced():
    history = [{"step": n, "reason": "the loss is nan", "samples": []} for n in range(1000)]
    assert record_validation(history, 5, 1.0) is history
    longer = record_validation(history, 5, math.nan)
    assert (len(history), len(longer), longer[0]["step"], longer[-1]["step"]) == (1000, 1000, 1, 5)
