"""Faults in the training loop: steps that are not finite, bad images, and saves that fail."""

import math

import pytest
from stand_in_run import Run, fitted

from seresnext.checkpoint.store import SaveError
from seresnext.errors import DataError, TrainingStopped


def stopped(run):
    """Return the message of a run that too many skipped steps end."""
    with pytest.raises(TrainingStopped) as caught:
        run.fit()
    assert run.saver.is_entered is False
    return str(caught.value)


def losses(*bad, value=math.nan):
    """Return a loss function: 1 for both replicas, and `value` for the second in the steps `bad` (from 0)."""
    return lambda step: (1.0, value if step in bad else 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_skipped_step_is_printed_logged_and_saved(bad):
    run = fitted(loss_of=losses(4, value=bad))
    reason = f"the loss is {bad} in micro-batch 2 of 2"
    names = [f"4/1/{n}.jpg" for n in range(20)]
    (event,) = run.events("skipped")
    assert event == {"event": "skipped", "step": 5, "epoch": 1.25, "reason": reason, "samples": names}
    (text,) = run.logger.texts
    first, *listing = text.splitlines()
    assert first.startswith(f"warning: {reason} in step 5. The step was skipped")
    assert listing == [*(f"  {name}" for name in names[:16]), "  ... and 4 more"]
    entry = {"step": 5, "reason": reason, "samples": names[:16]}
    assert [saved["history"] for saved in run.saver.saved] == [[], [], [entry], [entry]]


def test_a_gradient_may_come_from_any_micro_batch():
    (event,) = fitted(grad_norm_of=lambda step: math.inf if step == 2 else 1.0).events("skipped")
    assert (event["step"], event["reason"]) == (3, "the gradient's norm is inf")
    assert event["samples"] == [f"2/{replica}/{n}.jpg" for replica in range(2) for n in range(20)]


def test_the_mean_is_over_the_steps_that_were_not_skipped():
    """The losses of step s are s and s + 1. A window of skipped steps alone has no mean."""
    run = fitted(loss_of=lambda s: (float(s), math.nan if s in (1, 4, 5) else s + 1.0), stop_after_skips=9)
    found = [(event["loss"], event["skipped"]) for event in run.events("train")]
    assert found == [(0.5, 1), (3.0, 0), (None, 2), (7.0, 0)]
    assert run.logger.bar.n == 8  # Skipped steps count as steps.


@pytest.mark.parametrize(("limit", "last"), [(1, 0), (2, 5), (3, 6)])
def test_too_many_skips_in_a_row_end_the_run(limit, last):
    run = Run(log_every=1, save_every=1, loss_of=losses(0, 2, 4, 5, 6), stop_after_skips=limit)
    message = stopped(run)
    assert message.startswith(f"the loss is nan in micro-batch 2 of 2 in step {last + 1}; ")
    assert ("step was skipped" if limit == 1 else f"{limit} steps in a row were skipped") in message
    assert "optimizer.lr" in message
    assert "optimizer.stop_after_skips" in message
    assert message.splitlines()[1:] == [*(f"  {last}/1/{n}.jpg" for n in range(16)), "  ... and 4 more"]
    # Also if a log line and a save are due after the step.
    steps = range(1, last + 1)
    assert run.what("train") == " ".join(f"train{number}" for number in steps)
    assert {saved["step"] for saved in run.saver.saved} == set(steps)
    assert run.what("skipped").endswith(f"skipped{last + 1}")


def test_a_save_reads_the_last_result_first():
    """If nothing else is due after the step, the result has not been read yet."""
    run = Run(log_every=100, evaluate_every=100, save_every=3, loss_of=losses(5), stop_after_skips=1)
    assert "in step 6" in stopped(run)
    assert run.what("save") == "save3"


def test_skips_in_a_row_are_counted_across_a_resume():
    settings = {"save_every": 1, "loss_of": losses(2, 3, 4)}
    first = Run(**settings, stops_at=3)
    assert first.fit() is False
    assert first.progress.skips_in_a_row == len(first.progress.history) == 2
    assert "in step 5; 3 steps in a row" in stopped(first.resumed(**settings))


def test_overflows_are_only_counted():
    """The scaler of fp16 handles overflows. Overflows do not end the run, and do not reset the count in a row."""
    run = fitted(scaled=True, grad_norm_of=lambda step: math.inf if step in (1, 2, 3, 4) else 1.0)
    assert run.what("skipped") == ""
    assert run.progress.history == []
    assert [event["skipped"] for event in run.events("train")] == [1, 2, 1, 0]
    between = Run(scaled=True, grad_norm_of=lambda step: math.inf if step == 2 else 1.0, loss_of=losses(1, 3, 4))
    assert "the loss is nan" in stopped(between)


def test_bad_images_are_reported_with_the_next_result():
    run = fitted(bad_at=(2, 7), log_every=100)
    assert "read3 warned2.jpg" in run.what("step", "read", "warned")
    assert run.log[-2:] == [("warned", "7.jpg"), ("finish", 8)]  # No later result reports the image of the last step.
    assert len(run.what("warned").split()) == 2


def test_too_many_bad_images_end_the_run():
    with pytest.raises(DataError, match="2 images cannot be used"):
        Run(bad_at=(2, 3), bad_allowed=1).fit()


def test_a_failed_save_is_heard_of_with_the_next_report(monkeypatch):
    """The result of a step informs all ranks, so no rank waits for a rank that has stopped."""
    run = Run(total=8, save_every=2, evaluate_every=100, log_every=100, saves_fail_at=[4])
    waits, wait = [], run.saver.wait
    monkeypatch.setattr(run.saver, "wait", lambda: (waits.append((run.progress.step, wait())), waits[-1][1])[1])
    run.fit()
    # The result of step 4, the first after the failure, is read after step 5 was queued with the same flag.
    assert waits == [(2, True), (4, True), (6, False), (6, True), (6, True), (8, True), (8, True), (8, True)]
    assert run.what("save") == "save2 save4 save6 save8 save8"


@pytest.mark.parametrize(
    ("every", "right", "fails_at", "bests"),
    [
        (2, {2: 3, 4: 8, 6: 5, 8: 1}, 4, [(2, None), (2, 2), (4, 2), (4, 4), (6, 2), (6, 6), (8, 6), (8, 6)]),
        (2, {2: 3, 4: 8, 6: 2, 8: 1}, 4, [(2, None), (2, 2), (4, 2), (4, 4), (6, 2), (8, 2), (8, 2)]),
        (1, {1: 3, 2: 5, 3: 7, 4: 1}, 2, [(1, None), (1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 3), (4, 3)]),
    ],
    ids=["a later best beats the last written one", "no later best", "a better best during the write stays"],
)
def test_a_best_without_a_file_is_dropped(every, right, fails_at, bests):
    """The best must have a file. A later validation can beat this best without beating the lost best."""
    run = fitted(
        total=4 * every, evaluate_every=every, save_every=100, right=right.__getitem__, saves_fail_at=[fails_at]
    )
    assert run.bests() == bests
    assert run.progress.best["step"] == bests[-1][1]


def test_a_failed_last_save_is_repeated_and_then_ends_the_run():
    run = Run(saves_fail_at=[8])
    with pytest.raises(SaveError, match="the last one"):
        run.fit()
    assert run.what("save") == "save4 save4 save8 save8 save8"
    assert run.saver.is_entered is False
