"""The training loop: the order of actions, the state between steps, and the end of a run."""

import math
from dataclasses import asdict

import pytest
from stand_in_run import CLASSES, Run, fitted

from seresnext.errors import DataError
from seresnext.training import trainer as trainer_module
from seresnext.training.plan import Progress


def test_everything_in_its_order():
    run = fitted()
    assert run.what("step", "train", "evaluate", "validate", "save", "finish") == (
        "step0 step1 train2 step2 step3 train4 save4 evaluate4 validate4 save4 "  # The second save has the new best.
        "step4 step5 train6 step6 step7 train8 save8 evaluate8 validate8 save8 finish8"
    )
    assert run.logger.bar.n == 8
    assert run.logger.bars == [("train", 0, 8), ("validate", 0, 2), ("validate", 0, 2)]


def test_a_result_is_read_after_the_next_step_was_queued():
    """The device is then busy between steps. A log line, a validation and a save need the result at once."""
    run = fitted(total=6, log_every=4, evaluate_every=100, save_every=100)
    expected = "step0 step1 read0 step2 read1 step3 read2 read3 train4"
    assert run.what("step", "read", "train").startswith(expected)
    assert run.what("read") == "read0 read1 read2 read3 read4 read5"


def test_the_measure_of_the_recipe_chooses_the_best_and_ends_the_run():
    """7 of 8 are right, then 5, then 6: the first validation is the best by each measure, and old after step 6."""
    for by in ("loss", "balanced_accuracy", "macro_f1"):
        settings = {"total": 100, "evaluate_every": 2, "right": {2: 7, 4: 5, 6: 6}.__getitem__, "patience": 4}
        run = fitted(**settings, best_by=by)
        events = run.events("validate")
        assert (run.progress.step, run.progress.best["step"]) == (6, 2)
        assert (run.progress.best["by"], run.progress.best[by]) == (by, events[0][by])
        assert len({event[by] for event in events}) == 3
        assert ["per_class" in event for event in events] == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "progress", "actions", "bests"),
    [
        # 6 of 8 are correct, then 4, then 8. A step is saved before its validation, and a new best once more.
        (
            {"total": 6, "evaluate_every": 2, "right": {2: 6, 4: 4, 6: 8}.__getitem__},
            (0, 0),
            "save2 evaluate2 save2 save4 evaluate4 save6 evaluate6 save6",
            [None, 2, 2, 2, 6],
        ),
        # Without the save at the end, a start of the same command would repeat the last validation.
        ({"right": lambda step: 8 - step}, (0, 0), "save4 evaluate4 save4 save8 evaluate8 save8", [None, 4, 4, 4]),
        ({"right": lambda step: 5}, (0, 0), "save4 evaluate4 save4 save8 evaluate8 save8", [None, 4, 4, 4]),
        # `best` must link to a checkpoint of the same step, because the next step changes the weights.
        ({"right": lambda step: 8 - step}, (4, 0), "evaluate4 save4 save8 evaluate8 save8", [4, 4, 4]),
        # Nothing is done twice: validated, complete, and stopped in the last validation.
        ({}, (4, 4), "save8 evaluate8 save8", [4, 4]),
        ({}, (8, 8), "", []),
        ({}, (8, 4), "evaluate8 save8", [4]),
    ],
)
def test_validations_and_saves(settings, progress, actions, bests):
    step, evaluated = progress
    best = {"step": evaluated, "top1": 100.0} if evaluated else None
    run = fitted(**settings, save_every=100, progress=Progress(step=step, evaluated=evaluated, best=best))
    assert run.what("evaluate", "save") == actions
    assert [found for _, found in run.bests()] == bests
    assert run.what("step") == " ".join(f"step{number}" for number in range(step, settings.get("total", 8)))
    assert bests == [] or run.saver.saved[-1] == asdict(run.progress)
    assert run.progress.evaluated == run.progress.step


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("fails_at", [4, 8])
def test_an_error_in_a_validation_costs_no_step(monkeypatch, fails_at, calibrated):
    """A resume repeats the failed validation and ends like a run without an error."""
    monkeypatch.setattr(trainer_module, "recalibrate", lambda *_, **options: True)
    settings = {"calibrated": calibrated, "right": lambda step: 8 - step // 2, "weights": ("model", "ema")}
    straight, run = fitted(**settings), Run(**settings)

    def fail():
        if run.progress.step == fails_at:
            raise DataError("val/b/3.jpg is empty")

    run.before_validation(fail)
    with pytest.raises(DataError, match=r"3\.jpg"):
        run.fit()
    assert run.saver.saved[-1]["step"] == fails_at
    again = run.resumed(**settings)
    assert again.fit() is True
    assert f"step{fails_at - 1}" not in again.what("step")
    assert again.what("evaluate").startswith(f"evaluate{fails_at} evaluate{fails_at}")
    assert again.saver.saved[-1] == straight.saver.saved[-1]


def test_train_events():
    events = fitted(total=5).events("train")
    assert [event["step"] for event in events] == [2, 4, 5]
    assert [event["epoch"] for event in events] == [0.5, 1.0, 1.25]
    # The losses of step s are s and s + 1. A line has the mean since the last line.
    assert [event["loss"] for event in events] == [1.0, 3.0, 4.5]
    assert [event["lr"] for event in events] == [0.5, 0.125, 0.0625]  # of the last step, not of the next
    assert [event["grad_norm"] for event in events] == [0.1, 0.3, 0.4]
    assert [event["data_wait"] for event in events] == [0.125] * 3
    assert [event["total_steps"] for event in events] == [5] * 3
    assert all(event["images_per_second"] > 0 and event["seconds_per_step"] > 0 for event in events)
    # Of 6 images a step, 0 and 1 are correct, then 2 and 3, then 4.
    assert [event["top1"] for event in events] == [100 * 1 / 12, 100 * 5 / 12, 100 * 4 / 6]


def test_an_epoch_has_the_means_of_its_steps():
    """An epoch has 4 steps. Skipped steps are no part of the means. A run may end inside of an epoch."""
    run = fitted(total=10, log_every=3, loss_of=lambda step: (math.nan if step == 5 else float(step), 1.0))
    assert run.what("epoch") == "epoch4 epoch8"
    first, second = ({k: v for k, v in event.items() if k != "images_per_second"} for event in run.events("epoch"))
    assert first == {"event": "epoch", "step": 4, "epoch": 1.0, "loss": 1.25, "top1": 100 * 6 / 24}
    assert second["loss"] == pytest.approx((4 + 6 + 7 + 3) / 6)
    assert second["top1"] == 100 * (4 + 6 + 6) / 18


def test_validate_events_for_all_weights():
    run = fitted(total=4, weights=("model", "ema"), chosen="ema")
    model, ema = run.events("validate")
    assert (model["weights"], ema["weights"]) == ("model", "ema")
    for event in (model, ema):
        assert (event["step"], event["epoch"], event["top1"], event["num_images"]) == (4, 1.0, 50.0, 8)
        assert event.keys() >= {"loss", "top5"}
    measures = {name: ema[name] for name in ("top1", "top5", "balanced_accuracy", "macro_f1")}
    assert run.progress.best == {"step": 4, **measures, "by": "top1", "weights": "ema"}
    assert "per_class" not in model
    assert [row["support"] for row in ema["per_class"]] == [2] * CLASSES
    assert [logits.calls for logits in run.models.values()] == [2, 2]


@pytest.mark.parametrize("bad", [(), (1, 2, 4)])
@pytest.mark.parametrize("stops_at", range(7))
def test_a_stopped_and_resumed_run_logs_and_saves_the_same(stops_at, bad):
    """Log windows, best and plan continue without a difference. The history has the skipped steps."""
    settings = {
        "loss_of": lambda step: (math.nan if step in bad else float(step), 1.0),
        "log_every": 3,
        "evaluate_every": 2,
        "right": [0, 0, 5, 0, 3, 0, 7, 0, 6].__getitem__,
    }
    straight, first = fitted(**settings), Run(**settings, stops_at=stops_at)
    assert first.fit() is False
    stopped_at = first.progress.step
    # The stop is read after the next step was queued, or before, if something else needs the result.
    is_needed = (stops_at + 1) % 2 == 0 or (stops_at + 1) % 3 == 0
    assert stopped_at == stops_at + (1 if is_needed else 2)
    assert first.saver.saved[-1] == asdict(first.progress)
    second = first.resumed(**settings)
    assert second.fit() is True
    assert (first.what("draw"), second.what("draw")) == ("draw0", "")
    assert second.starts == [stopped_at]

    def logged(*runs):
        timing = {"images_per_second", "data_wait", "seconds_per_step"}
        return [{k: v for k, v in event.items() if k not in timing} for run in runs for event in run.logger.events]

    assert logged(first, second) == logged(straight)
    assert second.progress == straight.progress
    assert second.saver.saved[-1] == straight.saver.saved[-1]


def test_a_stop_during_validation_leaves_it_to_be_done():
    run = Run()
    run.before_validation(lambda: setattr(run.stop, "requested", True))
    assert run.fit() is False
    assert run.events("validate") == []
    assert (run.progress.step, run.progress.evaluated, run.progress.best) == (4, 0, None)
    assert run.what("save") == "save4"
    again = run.resumed()
    assert again.fit() is True
    assert again.what("evaluate", "validate", "step").startswith("evaluate4 validate4 step4")
    assert [event["step"] for event in again.events("validate")] == [4, 8]


@pytest.mark.parametrize("stops_at", [None, 5])
def test_an_early_end_when_the_best_is_too_old(stops_at):
    """An interrupted run has the same early end."""
    options = {"total": 20, "evaluate_every": 2, "patience": 4, "right": lambda step: {2: 3, 4: 5}.get(step, 4)}
    run = Run(**options, stops_at=stops_at)
    if run.fit() is False:
        run = run.resumed(**options)
        assert run.fit() is True
    assert run.progress.step == run.progress.evaluated == run.saver.saved[-1]["step"] == 8
    assert run.progress.best["step"] == 4


def test_no_early_end_while_validation_improves_or_without_patience():
    for patience, right in ((None, lambda step: 1), (4, lambda step: step // 4)):
        assert fitted(total=20, evaluate_every=2, patience=patience, right=right).progress.step == 20


def test_statistics_are_measured_once_before_the_last_validation(monkeypatch):
    """After a stop, the resumed run measures again."""
    monkeypatch.setattr(trainer_module, "recalibrate", lambda *_, **options: False)
    options = {"calibrated": True, "weights": ("model", "ema")}
    run = Run(**options)
    assert run.fit() is False
    assert (run.progress.step, run.progress.evaluated) == (8, 4)
    monkeypatch.setattr(trainer_module, "recalibrate", lambda *_, **options: not options["stop_requested"]())
    last = "calibrate8 calibrate8 evaluate8 evaluate8"
    again = run.resumed(**options)
    assert again.fit() is True
    assert again.what("calibrate", "evaluate") == last
    assert fitted(**options).what("calibrate", "evaluate", "save") == (
        f"save4 evaluate4 evaluate4 save4 save8 {last} save8"
    )
