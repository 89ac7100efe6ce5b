"""The training loop: the order of actions, the state between steps, and the end of a run.

Steps, batches, saver and logger are stand-ins that record the calls. The images of the model are the logits.
"""

import math
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seresnext.checkpoint.store import SaveError
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.substitute import BadImageCounter, ReplacedImage
from seresnext.distributed import World
from seresnext.errors import DataError, TrainingStopped
from seresnext.runtime import PRECISIONS
from seresnext.training import trainer as trainer_module
from seresnext.training.plan import Plan, Progress
from seresnext.training.result import StepResult
from seresnext.training.schedule import Schedule
from seresnext.training.trainer import TrainData, Trainer, Validation

CLASSES = 4


class Steps:
    """Steps with the losses `loss_of(step)` of two replicas. Results are read one at a time, in order.

    Steps with a loss or gradient that is not finite are skipped. `scaled`: the scale of fp16 is above 1.
    """

    def __init__(self, log, loss_of, grad_norm_of, stops_at, scaled):
        self._scaled = scaled
        self._log = log
        self._loss_of = loss_of
        self._grad_norm_of = grad_norm_of
        self._stops_at = stops_at

    def __call__(self, batches, *, step, lr, stop, save_failed, bad_images):
        assert next(batches) == step
        self._log.append(("step", step, lr))
        flags = bool(stop or step == self._stops_at), bool(save_failed), int(bad_images)
        return SimpleNamespace(result=lambda: self._result(step, *flags))

    def _result(self, step, stop, save_failed, bad_images):
        self._log.append(("read", step))
        losses, grad_norm = self._loss_of(step), self._grad_norm_of(step)
        skipped = not all(map(math.isfinite, (*losses, grad_norm)))
        scale = 2.0 if self._scaled else 1.0
        flags = {"skipped": skipped, "loss_scale": scale, "bad_images": bad_images}
        return StepResult(step, losses, grad_norm, 0.125, stop, save_failed, **flags)


class Saver:
    """Writes end at once. Writes of the steps in `fails_at` fail, and the run continues."""

    def __init__(self, log, fails_at=()):
        self._log = log
        self._fails_at = set(fails_at)
        self.has_failed = False
        self.is_entered = False
        self.saved = []

    def __enter__(self):
        self.is_entered = True
        return self

    def __exit__(self, *_):
        self.is_entered = False

    def save(self, step, progress):
        assert self.is_entered
        self._log.append(("save", step))
        self.saved.append(progress)
        self.has_failed = step in self._fails_at

    def wait(self):
        failed, self.has_failed = self.has_failed, False
        return not failed

    def finish(self):
        self._log.append(("finish", self.saved[-1]["step"] if self.saved else 0))
        if self.has_failed:
            raise SaveError("the last one")


class RunLogger:
    def __init__(self, log):
        self._log = log
        self.events = []
        self.texts = []
        self.bars = []
        self.advanced = 0

    def write(self, event, seconds_left=None, text=None):
        self._log.append((event["event"], event["step"]))
        self.events.append(event)
        self.texts += [text] if text else []

    @contextmanager
    def training(self, step, total):
        self.bars.append(("train", step, total))
        yield

    def advance(self):
        self.advanced += 1

    @contextmanager
    def validation(self, rounds):
        self.bars.append(("validate", rounds))
        yield lambda: None


class Logits(nn.Module):
    """A model that returns the images as logits, and counts the calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images


class Run:
    """A trainer with stand-ins, and one log. `right` gives the number of correct images of 8, by step."""

    def __init__(
        self,
        total=8,
        log_every=2,
        evaluate_every=4,
        save_every=4,
        progress=None,
        right=lambda step: min(step, 8),
        loss_of=lambda step: (float(step), float(step) + 1),
        grad_norm_of=lambda step: step / 10,
        stops_at=None,
        scaled=False,
        stop=None,
        weights=("model",),
        best_by="model",
        patience=None,
        stop_after_skips=3,
        calibrated=False,
        saves_fail_at=(),
        bad_at=(),
        bad_allowed=9,
    ):
        self.log = []
        self.bad_at = bad_at
        self.bad_images = BadImageCounter(
            bad_allowed, World(), lambda text: self.log.append(("warned", text.split()[1]))
        )
        self.saver, self.logger = Saver(self.log, saves_fail_at), RunLogger(self.log)
        self.progress = progress or Progress()
        self.right = right
        self.starts = []
        self.models = {name: Logits() for name in weights}
        self.stop = stop or SimpleNamespace(requested=False)
        self.trainer = Trainer(
            world=World(),
            plan=Plan(
                total,
                4,
                log_every,
                evaluate_every,
                save_every,
                global_size=6,
                patience=patience,
                stop_after_skips=stop_after_skips,
            ),
            progress=self.progress,
            step=Steps(self.log, loss_of, grad_norm_of, stops_at, scaled),
            schedule=Schedule("step", peak=1.0, total=total, every=1, factor=0.5),
            train=TrainData(
                self._train_batches,
                lambda step, replica: [f"{step}/{replica}/{n}.jpg" for n in range(20)],
                self.bad_images,
                self._calibration if calibrated else None,
            ),
            validation=Validation(self._validation_batches, 2, self.models, best_by, PRECISIONS["fp32"]),
            saver=self.saver,
            logger=self.logger,
            stop=self.stop,
        )

    def _warn(self, text):
        self.log.append(("warned", text.split()[1]))

    @contextmanager
    def _train_batches(self, step):
        self.starts.append(step)
        yield map(self._fetch, range(step, 1000))

    def _fetch(self, step):
        if step in self.bad_at:
            self.bad_images.note([ReplacedImage(step, f"{step}.jpg is empty", "other.jpg")])
        return step

    @contextmanager
    def _calibration(self):
        self.log.append(("calibrate", self.progress.step))
        yield iter([])

    @contextmanager
    def _validation_batches(self):
        self.log.append(("evaluate", self.progress.step))
        labels = torch.arange(8) % CLASSES
        logits = F.one_hot(labels, CLASSES).float()
        logits[self.right(self.progress.step) :] *= -1
        yield iter([DeviceBatch(logits[:5], labels[:5], 0, 0, 0.0), DeviceBatch(logits[5:], labels[5:], 1, 0, 0.0)])

    def fit(self):
        return self.trainer.fit()

    def what(self, *kinds):
        return [entry[:2] for entry in self.log if entry[0] in kinds]

    def events(self, kind):
        return [event for event in self.logger.events if event["event"] == kind]


# ------------------------------------------------------------------------------------------------ order of actions


def test_everything_in_its_order():
    run = Run()
    assert run.fit() is True
    assert run.what("step", "train", "evaluate", "validate", "save") == [
        ("step", 0),
        ("step", 1),
        ("train", 2),
        ("step", 2),
        ("step", 3),
        ("train", 4),
        ("save", 4),
        ("evaluate", 4),
        ("validate", 4),
        ("save", 4),  # the new best
        ("step", 4),
        ("step", 5),
        ("train", 6),
        ("step", 6),
        ("step", 7),
        ("train", 8),
        ("save", 8),
        ("evaluate", 8),
        ("validate", 8),
        ("save", 8),
    ]
    assert run.logger.advanced == 8
    assert run.logger.bars == [("train", 0, 8), ("validate", 2), ("validate", 2)]


def test_a_result_is_read_after_the_next_step_was_queued():
    """The device is then busy between steps. A log line, a validation and a save need the result at once."""
    run = Run(total=6, log_every=4, evaluate_every=100, save_every=100)
    run.fit()
    assert run.what("step", "read", "train")[:9] == [
        ("step", 0),
        ("step", 1),
        ("read", 0),
        ("step", 2),
        ("read", 1),
        ("step", 3),
        ("read", 2),
        ("read", 3),
        ("train", 4),
    ]
    assert [number for _, number in run.what("read")] == list(range(6))


def test_at_the_end_everything_is_due():
    run = Run(total=5, log_every=3, evaluate_every=3, save_every=3)
    run.fit()
    assert run.what("train", "validate", "save") == [
        ("train", 3),
        ("save", 3),
        ("validate", 3),
        ("save", 3),
        ("train", 5),
        ("save", 5),
        ("validate", 5),
        ("save", 5),
    ]


def test_each_step_at_its_learning_rate():
    run = Run(total=4)
    run.fit()
    assert [entry for entry in run.log if entry[0] == "step"] == [("step", n, 0.5**n) for n in range(4)]


def test_each_validation_is_saved_before_and_a_new_best_once_more():
    """6 of 8 are correct, then 4, then 8: the second validation is no new best."""
    right = {2: 6, 4: 4, 6: 8}
    run = Run(total=6, evaluate_every=2, save_every=100, right=right.__getitem__)
    run.fit()
    assert run.what("evaluate", "save") == [
        ("save", 2), ("evaluate", 2), ("save", 2), ("save", 4), ("evaluate", 4),
        ("save", 6), ("evaluate", 6), ("save", 6),
    ]  # fmt: skip
    assert [(saved["evaluated"], saved["best"] and saved["best"]["step"]) for saved in run.saver.saved] == [
        (0, None), (2, 2), (2, 2), (4, 2), (6, 6),
    ]  # fmt: skip


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("fails_at", [4, 8])
def test_an_error_in_a_validation_costs_no_step(monkeypatch, fails_at, calibrated):
    """A resume repeats the failed validation and ends like a run without an error."""
    monkeypatch.setattr(trainer_module, "recalibrate", lambda *_, **options: True)
    settings = {"calibrated": calibrated, "right": lambda step: 8 - step // 2, "weights": ("model", "ema")}
    straight = Run(**settings)
    straight.fit()
    run = Run(**settings)
    validation = run._validation_batches

    def failing():
        if run.progress.step == fails_at:
            raise DataError("val/b/3.jpg is empty")
        return validation()

    run.trainer._validation = replace(run.trainer._validation, batches=failing)
    with pytest.raises(DataError, match=r"3\.jpg"):
        run.fit()
    assert run.saver.saved[-1]["step"] == fails_at
    again = Run(**settings, progress=progress_of(run.saver.saved[-1]))
    assert again.fit() is True
    assert ("step", fails_at - 1) not in again.what("step")
    assert again.what("evaluate")[:2] == [("evaluate", fails_at)] * 2
    assert again.saver.saved[-1] == straight.saver.saved[-1]


def test_a_validation_that_is_no_new_best_is_saved_at_the_end_of_the_run():
    """Without this save, a start of the same command repeats the last validation."""
    run = Run(right=lambda step: 8 - step)
    run.fit()
    assert run.what("save") == [("save", 4), ("save", 4), ("save", 8), ("save", 8)]
    assert run.saver.saved[-1] == asdict(run.progress)
    assert (run.progress.evaluated, run.progress.best["step"]) == (8, 4)


def test_an_equal_accuracy_is_no_new_best():
    run = Run(total=6, evaluate_every=2, save_every=100, right=lambda step: 5)
    run.fit()
    assert run.progress.best["step"] == 2


# ------------------------------------------------------------------------------------------------ events


def test_train_events():
    run = Run(total=5)
    run.fit()
    events = run.events("train")
    assert [event["step"] for event in events] == [2, 4, 5]
    assert [event["epoch"] for event in events] == [0.5, 1.0, 1.25]
    # The losses of step s are s and s + 1. A line has the mean since the last line.
    assert [event["loss"] for event in events] == [1.0, 3.0, 4.5]
    assert [event["lr"] for event in events] == [0.5, 0.125, 0.0625]  # of the last step, not of the next
    assert [event["grad_norm"] for event in events] == [0.1, 0.3, 0.4]
    assert [event["data_wait"] for event in events] == [0.125] * 3
    assert all(event["images_per_second"] > 0 for event in events)


def test_validate_events_for_all_weights():
    run = Run(total=4, weights=("model", "ema"), best_by="ema")
    run.fit()
    model, ema = run.events("validate")
    assert (model["weights"], ema["weights"]) == ("model", "ema")
    for event in (model, ema):
        assert (event["step"], event["epoch"], event["top1"], event["num_images"]) == (4, 1.0, 50.0, 8)
        assert event.keys() >= {"loss", "top5"}
    assert run.progress.best == {"step": 4, "top1": 50.0, "top5": 100.0, "weights": "ema"}
    assert [logits.calls for logits in run.models.values()] == [2, 2]


# ------------------------------------------------------------------------------------------------ resume


def progress_of(saved):
    return Progress(**saved)


@pytest.mark.parametrize("bad", [(), (1, 2, 4)])
@pytest.mark.parametrize("stops_at", range(7))
def test_a_stopped_and_resumed_run_logs_and_saves_the_same(stops_at, bad):
    """Log windows, best and plan continue without a difference. The history has the skipped steps."""
    settings = {
        "loss_of": lambda step: (math.nan if step in bad else float(step), 1.0),
        "total": 8,
        "log_every": 3,
        "evaluate_every": 2,
        "save_every": 4,
        "right": [0, 0, 5, 0, 3, 0, 7, 0, 6].__getitem__,
    }
    straight = Run(**settings)
    straight.fit()
    first = Run(**settings, stops_at=stops_at)
    assert first.fit() is False
    stopped_at = first.progress.step
    # The stop is read after the next step was queued, or before, if something else needs the result.
    is_needed = (stops_at + 1) % 2 == 0 or (stops_at + 1) % 3 == 0
    assert stopped_at == stops_at + (1 if is_needed else 2)
    assert first.saver.saved[-1] == asdict(first.progress)
    second = Run(**settings, progress=progress_of(first.saver.saved[-1]))
    assert second.fit() is True
    assert second.starts == [stopped_at]

    def said(*runs):
        timing = {"images_per_second", "data_wait"}
        return [{k: v for k, v in event.items() if k not in timing} for run in runs for event in run.logger.events]

    assert said(first, second) == said(straight)
    assert second.progress == straight.progress
    assert second.saver.saved[-1] == straight.saver.saved[-1]


def test_a_stop_during_validation_leaves_it_to_be_done():
    stop = SimpleNamespace(requested=False)
    run = Run(stop=stop)
    batches = run._validation_batches

    def interrupted():
        stop.requested = True
        return batches()

    run.trainer._validation = replace(run.trainer._validation, batches=interrupted)
    assert run.fit() is False
    assert run.events("validate") == []
    assert (run.progress.step, run.progress.evaluated, run.progress.best) == (4, 0, None)
    assert run.what("save") == [("save", 4)]

    again = Run(progress=progress_of(run.saver.saved[-1]))
    assert again.fit() is True
    assert again.what("evaluate", "validate", "step")[:3] == [("evaluate", 4), ("validate", 4), ("step", 4)]
    assert [event["step"] for event in again.events("validate")] == [4, 8]


def test_a_best_of_a_repeated_validation_is_saved_at_the_same_step():
    """`best` must link to a checkpoint of the same step, because the next step changes the weights."""
    run = Run(right=lambda step: 8 - step, progress=Progress(step=4), save_every=100)
    run.fit()
    assert bests(run) == [(4, 4), (8, 4), (8, 4)]


def test_a_validation_that_was_done_is_not_repeated():
    run = Run(progress=Progress(step=4, evaluated=4, best={"step": 4, "top1": 99.0}), right=lambda step: 7)
    run.fit()
    assert run.what("evaluate") == [("evaluate", 8)]
    assert run.progress.best == {"step": 4, "top1": 99.0}


def test_a_run_that_is_complete_does_nothing():
    run = Run(progress=Progress(step=8, evaluated=8, best={"step": 8, "top1": 1.0}))
    assert run.fit() is True
    assert run.log == [("finish", 0)]


def test_a_run_that_was_stopped_in_its_last_validation_only_validates():
    run = Run(progress=Progress(step=8, evaluated=4, best={"step": 4, "top1": 1.0}))
    assert run.fit() is True
    assert run.what("step", "validate", "save") == [("validate", 8), ("save", 8)]


# ------------------------------------------------------------------------------------------------ not finite


def told(run):
    with pytest.raises(TrainingStopped) as caught:
        run.fit()
    return str(caught.value)


def losses(*bad, value=math.nan):
    """Return a loss function: 1 for both replicas, and `value` for the second in the steps `bad` (from 0)."""
    return lambda step: (1.0, value if step in bad else 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_skipped_step_is_printed_logged_and_saved(bad):
    run = Run(loss_of=losses(4, value=bad))
    assert run.fit() is True
    reason = f"the loss is {bad} in micro-batch 2 of 2"
    names = [f"4/1/{n}.jpg" for n in range(20)]
    (event,) = run.events("skipped")
    assert event == {"event": "skipped", "step": 5, "epoch": 1.25, "reason": reason, "samples": names}
    (text,) = run.logger.texts
    first, *listing = text.splitlines()
    assert first.startswith(f"warning: {reason} in step 5. The step was skipped")
    assert listing == [*(f"  {name}" for name in names[:16]), "  and 4 more"]
    entry = {"step": 5, "reason": reason, "samples": names[:16]}
    assert [(saved["step"], saved["history"]) for saved in run.saver.saved] == [
        (4, []), (4, []), (8, [entry]), (8, [entry]),
    ]  # fmt: skip


def test_a_gradient_may_come_from_any_micro_batch():
    run = Run(grad_norm_of=lambda step: math.inf if step == 2 else 1.0)
    run.fit()
    (event,) = run.events("skipped")
    assert (event["step"], event["reason"]) == (3, "the gradient's norm is inf")
    assert event["samples"] == [f"2/{replica}/{n}.jpg" for replica in range(2) for n in range(20)]


def test_the_mean_is_over_the_steps_that_were_not_skipped():
    """The losses of step s are s and s + 1. A window of skipped steps alone has no mean."""
    run = Run(log_every=2, loss_of=lambda s: (float(s), math.nan if s in (1, 4, 5) else s + 1.0), stop_after_skips=9)
    run.fit()
    assert [(event["loss"], event["skipped"]) for event in run.events("train")] == [
        (0.5, 1),
        (3.0, 0),
        (None, 2),
        (7.0, 0),
    ]
    assert run.logger.advanced == 8  # Skipped steps count as steps.


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_too_many_skips_in_a_row_end_the_run(limit):
    run = Run(log_every=1, save_every=1, loss_of=losses(0, 2, 4, 5, 6), stop_after_skips=limit)
    message = told(run)
    last = {1: 0, 2: 5, 3: 6}[limit]
    assert message.startswith(f"the loss is nan in micro-batch 2 of 2 in step {last + 1}; ")
    assert ("step was skipped" if limit == 1 else f"{limit} steps in a row were skipped") in message
    assert "optimizer.lr" in message
    assert "optimizer.stop_after_skips" in message
    assert message.splitlines()[1:] == [*(f"  {last}/1/{n}.jpg" for n in range(16)), "  and 4 more"]
    # Also if a log line and a save are due after the step.
    steps = list(range(1, last + 1))
    assert run.what("train") == [("train", number) for number in steps]
    assert list(dict.fromkeys(run.what("save"))) == [("save", number) for number in steps]
    assert run.what("skipped")[-1] == ("skipped", last + 1)


def test_a_save_reads_the_last_result_first():
    """If nothing else is due after the step, the result has not been read yet."""
    run = Run(log_every=100, evaluate_every=100, save_every=3, loss_of=losses(5), stop_after_skips=1)
    assert "in step 6" in told(run)
    assert run.what("save") == [("save", 3)]


def test_skips_in_a_row_are_counted_across_a_resume():
    first = Run(save_every=1, loss_of=losses(2, 3, 4), stops_at=3)
    assert first.fit() is False
    saved = first.saver.saved[-1]
    assert saved["skips_in_a_row"] == len(saved["history"]) == 2
    second = Run(save_every=1, loss_of=losses(2, 3, 4), progress=progress_of(saved))
    assert "in step 5; 3 steps in a row" in told(second)


def test_overflows_are_only_counted():
    """The scaler of fp16 handles overflows. Overflows do not end the run, and do not reset the count in a row."""
    run = Run(scaled=True, grad_norm_of=lambda step: math.inf if step in (1, 2, 3, 4) else 1.0)
    assert run.fit() is True
    assert run.what("skipped") == []
    assert run.progress.history == []
    assert [event["skipped"] for event in run.events("train")] == [1, 2, 1, 0]
    between = Run(scaled=True, grad_norm_of=lambda step: math.inf if step == 2 else 1.0, loss_of=losses(1, 3, 4))
    assert "the loss is nan" in told(between)


# ------------------------------------------------------------------------------------------------ dry run


def test_a_dry_run_takes_two_steps_and_one_batch():
    run = Run(weights=("model", "ema"))
    dry_run = run.trainer.dry_run()
    assert run.what("step", "read") == [("step", 0), ("read", 0), ("step", 1), ("read", 1)]
    assert [logits.calls for logits in run.models.values()] == [1, 1]
    assert run.what("save", "train", "validate") == []
    assert run.logger.bars == []
    assert dry_run.step_seconds > 0
    assert dry_run.validation_seconds > 0


def test_a_dry_run_of_a_run_of_one_step():
    run = Run(total=1)
    run.trainer.dry_run()
    assert run.what("step") == [("step", 0)]


def test_a_dry_run_finds_a_loss_that_is_not_finite():
    run = Run(loss_of=lambda step: (math.nan, math.nan))
    run.trainer.dry_run()
    assert run.logger.texts[0].startswith("warning: the loss is nan in micro-batches 1, 2 of 2 in step 1")


# ------------------------------------------------------------------------------------------------ early stop


def test_an_early_end_when_the_best_is_too_old():
    run = Run(total=20, evaluate_every=2, patience=4, right=lambda step: {2: 3, 4: 5}.get(step, 4))
    assert run.fit() is True
    assert run.progress.step == run.progress.evaluated == 8
    assert run.progress.best["step"] == 4
    assert run.saver.saved[-1]["step"] == 8


def test_no_early_end_while_validation_improves_or_without_patience():
    for patience, right in ((None, lambda step: 1), (4, lambda step: step // 4)):
        run = Run(total=20, evaluate_every=2, patience=patience, right=right)
        run.fit()
        assert run.progress.step == 20


def test_an_interrupted_run_has_the_same_early_end():
    options = {"total": 20, "evaluate_every": 2, "patience": 4, "right": lambda step: {2: 3, 4: 5}.get(step, 4)}
    first = Run(**options, stops_at=5)
    assert first.fit() is False
    second = Run(**options, progress=Progress(**first.saver.saved[-1]))
    assert second.fit() is True
    assert second.progress.step == 8


# ------------------------------------------------------------------------------------------------ recalibration


def test_statistics_are_measured_once_before_the_last_validation(monkeypatch):
    monkeypatch.setattr(trainer_module, "recalibrate", lambda *_, **options: not options["stop_requested"]())
    run = Run(calibrated=True, weights=("model", "ema"))
    assert run.fit() is True
    assert run.what("calibrate", "evaluate", "save") == [
        ("save", 4), ("evaluate", 4), ("evaluate", 4), ("save", 4),
        ("save", 8), ("calibrate", 8), ("calibrate", 8), ("evaluate", 8), ("evaluate", 8), ("save", 8),
    ]  # fmt: skip


def test_a_stop_during_recalibration_leaves_the_validation_to_be_done(monkeypatch):
    monkeypatch.setattr(trainer_module, "recalibrate", lambda *_, **options: False)
    run = Run(calibrated=True)
    assert run.fit() is False
    assert (run.progress.step, run.progress.evaluated) == (8, 4)
    monkeypatch.setattr(trainer_module, "recalibrate", lambda *_, **options: True)
    again = Run(calibrated=True, progress=Progress(**run.saver.saved[-1]))
    assert again.fit() is True
    assert again.what("calibrate", "evaluate") == [("calibrate", 8), ("evaluate", 8)]


# ------------------------------------------------------------------------------------------------ failed saves


def test_the_end_waits_for_every_save():
    run = Run()
    run.fit()
    assert run.what("save", "finish")[-3:] == [("save", 8), ("save", 8), ("finish", 8)]
    assert run.saver.is_entered is False


def test_bad_images_are_reported_with_the_next_result():
    run = Run(bad_at=(2, 7), log_every=100)
    run.fit()
    log = run.what("step", "read", "warned")
    assert log.index(("warned", "2.jpg")) == log.index(("read", 3)) + 1
    assert log[-1] == ("warned", "7.jpg")  # The image of the last step, which no later result reports.
    assert len(run.what("warned")) == 2


def test_too_many_bad_images_end_the_run():
    run = Run(bad_at=(2, 3), bad_allowed=1)
    with pytest.raises(DataError, match="2 images cannot be used"):
        run.fit()


def test_a_failed_save_is_heard_of_with_the_next_report(monkeypatch):
    """The result of a step informs all ranks, so no rank waits for a rank that has stopped."""
    run = Run(total=8, save_every=2, evaluate_every=100, log_every=100, saves_fail_at=[4])
    settled = []
    real = run.saver.wait
    monkeypatch.setattr(run.saver, "wait", lambda: (settled.append((run.progress.step, real())), settled[-1][1])[1])
    run.fit()
    # The result of step 4, the first after the failure, is read after step 5 was queued with the same flag.
    assert settled == [(2, True), (4, True), (6, False), (6, True), (6, True), (8, True), (8, True), (8, True)]
    assert run.what("save") == [("save", 2), ("save", 4), ("save", 6), ("save", 8), ("save", 8)]


def bests(run):
    """Return the saves of a run, each with the step of the best so far."""
    return [(saved["step"], saved["best"] and saved["best"]["step"]) for saved in run.saver.saved]


def test_a_best_without_a_file_is_dropped():
    """The best must have a file. A later validation can beat this best without beating the lost best."""
    right = {2: 3, 4: 8, 6: 5, 8: 1}
    run = Run(total=8, evaluate_every=2, save_every=100, right=right.__getitem__, saves_fail_at=[4])
    run.fit()
    assert bests(run) == [(2, None), (2, 2), (4, 2), (4, 4), (6, 2), (6, 6), (8, 6), (8, 6)]
    lost = Run(total=8, evaluate_every=2, save_every=100, right={**right, 6: 2}.__getitem__, saves_fail_at=[4])
    lost.fit()
    assert bests(lost) == [(2, None), (2, 2), (4, 2), (4, 4), (6, 2), (8, 2), (8, 2)]
    assert lost.progress.best["step"] == 2


def test_a_better_best_found_during_the_write_stays():
    run = Run(total=4, evaluate_every=1, save_every=100, right={1: 3, 2: 5, 3: 7, 4: 1}.__getitem__, saves_fail_at=[2])
    run.fit()
    assert bests(run)[::2] == [(1, None), (2, 1), (3, 1), (4, 3)]
    assert bests(run)[1::2] == [(1, 1), (2, 2), (3, 3), (4, 3)]


def test_a_failed_last_save_is_repeated_and_then_ends_the_run():
    run = Run(saves_fail_at=[8])
    with pytest.raises(SaveError, match="the last one"):
        run.fit()
    assert run.what("save") == [("save", 4), ("save", 4), ("save", 8), ("save", 8), ("save", 8)]
    assert run.saver.is_entered is False


def test_an_error_exits_the_saver():
    run = Run(loss_of=losses(5), stop_after_skips=1)
    told(run)
    assert run.saver.is_entered is False
