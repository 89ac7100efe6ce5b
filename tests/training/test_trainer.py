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
from seresnext.training.data import TrainData, Validation
from seresnext.training.plan import Plan, Progress
from seresnext.training.result import StepResult
from seresnext.training.schedule import Schedule
from seresnext.training.trainer import Trainer

CLASSES = 4


class Steps:
    """Steps with the losses `loss_of(step)` of two replicas. Results are read one at a time, in order.

    Steps with a loss or gradient that is not finite are skipped. `scaled`: the scale of fp16 is above 1. In step s, s
    of the 6 images are correct.
    """

    mix, timer, image_size = None, None, 224

    def __init__(self, log, loss_of, grad_norm_of, stops_at, scaled):
        self._log, self._stops_at, self._scale = log, stops_at, 2.0 if scaled else 1.0
        self._loss_of, self._grad_norm_of = loss_of, grad_norm_of

    def __call__(self, batches, *, step, lr, stop, save_failed, bad_images):
        assert next(batches) == step
        assert lr == 0.5**step
        self._log.append(("step", step))
        flags = bool(stop or step == self._stops_at), bool(save_failed), int(bad_images)
        return SimpleNamespace(result=lambda: self._result(step, *flags))

    def _result(self, step, stop, save_failed, bad_images):
        self._log.append(("read", step))
        losses, grad_norm = self._loss_of(step), self._grad_norm_of(step)
        skipped = not all(map(math.isfinite, (*losses, grad_norm)))
        flags = {"skipped": skipped, "loss_scale": self._scale, "bad_images": bad_images, "correct": min(step, 6)}
        return StepResult(step, losses, grad_norm, 0.125, stop, save_failed, **flags)


class Saver:
    """Writes end at once. Writes of the steps in `fails_at` fail, and the run continues."""

    def __init__(self, log, fails_at=()):
        self._log, self._fails_at = log, set(fails_at)
        self.has_failed = self.is_entered = False
        self.saved = []

    def __enter__(self):
        self.is_entered = True

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
        self.events, self.texts, self.bars, self.advanced = [], [], [], 0

    def write(self, event, seconds_left=None, text=None, only_log=False):
        if event.get("kind") in ("data_starvation", "throughput_drop"):
            return  # The stand-ins take no time and claim to wait.
        self._log.append((event["event"], event["step"]))
        self.events.append(event)
        self.texts += [text] if text else []

    def draw_first(self, batches, mix):
        self._log.append(("draw", 0))
        return batches

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

    calls = 0

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
        weights=("model",),
        best_by="model",
        calibrated=False,
        saves_fail_at=(),
        bad_at=(),
        bad_allowed=9,
        **plan,
    ):
        self.log, self.starts, self.right, self.bad_at = [], [], right, bad_at
        self.bad_images = BadImageCounter(
            bad_allowed, World(), lambda text: self.log.append(("warned", text.split()[1]))
        )
        self.saver, self.logger = Saver(self.log, saves_fail_at), RunLogger(self.log)
        self.progress = progress or Progress()
        self.models = {name: Logits() for name in weights}
        self.stop = SimpleNamespace(requested=False)
        plan = {"stop_after_skips": 3, **plan}
        self.trainer = Trainer(
            world=World(),
            plan=Plan(total, 4, log_every, evaluate_every, save_every, global_size=6, **plan),
            progress=self.progress,
            step=Steps(self.log, loss_of, grad_norm_of, stops_at, scaled),
            schedule=Schedule("step", peak=1.0, total=total, every=1, factor=0.5),
            train=TrainData(
                self._train_batches,
                lambda step, replica: [f"{step}/{replica}/{n}.jpg" for n in range(20)],
                self.bad_images,
                3 if calibrated else 0,
            ),
            validation=Validation(self._validation_batches, 2, self.models, best_by, PRECISIONS["fp32"]),
            saver=self.saver,
            logger=self.logger,
            stop=self.stop,
        )
        self.fit = self.trainer.fit

    @contextmanager
    def _train_batches(self, start, end):
        if end > self.trainer.plan.total:
            assert (start, end) == (8, 11)
            self.log.append(("calibrate", start))
        else:
            self.starts.append(start)
        yield map(self._fetch, range(start, 1000))

    def _fetch(self, step):
        if step in self.bad_at:
            self.bad_images.note([ReplacedImage(step, f"{step}.jpg is empty", "other.jpg")])
        return step

    @contextmanager
    def _validation_batches(self):
        self.log.append(("evaluate", self.progress.step))
        labels = torch.arange(8) % CLASSES
        logits = F.one_hot(labels, CLASSES).float()
        logits[self.right(self.progress.step) :] *= -1
        yield iter([DeviceBatch(logits[:5], labels[:5], 0, 0, 0.0), DeviceBatch(logits[5:], labels[5:], 1, 0, 0.0)])

    def before_validation(self, action):
        """Call an action before each validation."""
        batches = self._validation_batches
        validation = replace(self.trainer.validation, batches=lambda: (action(), batches())[1])
        self.trainer.validation = validation

    def what(self, *kinds):
        """Return the actions of some kinds in order, such as `step0 read0 save1`."""
        return " ".join(f"{kind}{number}" for kind, number in self.log if kind in kinds)

    def events(self, kind):
        return [event for event in self.logger.events if event["event"] == kind]

    def bests(self):
        """Return the saves, each with the step of the best so far."""
        return [(saved["step"], saved["best"] and saved["best"]["step"]) for saved in self.saver.saved]

    def resumed(self, **settings):
        """Return a run that resumes from the last save."""
        return Run(**settings, progress=Progress(**self.saver.saved[-1]))


def fitted(**settings):
    """Return a run that was trained to the end."""
    run = Run(**settings)
    assert run.fit() is True
    assert run.saver.is_entered is False
    return run


def test_everything_in_its_order():
    run = fitted()
    assert run.what("step", "train", "evaluate", "validate", "save", "finish") == (
        "step0 step1 train2 step2 step3 train4 save4 evaluate4 validate4 save4 "  # The second save has the new best.
        "step4 step5 train6 step6 step7 train8 save8 evaluate8 validate8 save8 finish8"
    )
    assert run.logger.advanced == 8
    assert run.logger.bars == [("train", 0, 8), ("validate", 2), ("validate", 2)]


def test_a_result_is_read_after_the_next_step_was_queued():
    """The device is then busy between steps. A log line, a validation and a save need the result at once."""
    run = fitted(total=6, log_every=4, evaluate_every=100, save_every=100)
    expected = "step0 step1 read0 step2 read1 step3 read2 read3 train4"
    assert run.what("step", "read", "train").startswith(expected)
    assert run.what("read") == "read0 read1 read2 read3 read4 read5"


def test_each_validation_is_saved_before_and_a_new_best_once_more():
    """6 of 8 are correct, then 4, then 8: the second validation is no new best."""
    run = fitted(total=6, evaluate_every=2, save_every=100, right={2: 6, 4: 4, 6: 8}.__getitem__)
    assert run.what("evaluate", "save") == "save2 evaluate2 save2 save4 evaluate4 save6 evaluate6 save6"
    assert [saved["evaluated"] for saved in run.saver.saved] == [0, 2, 2, 4, 6]
    assert run.bests() == [(2, None), (2, 2), (4, 2), (6, 2), (6, 6)]


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


def test_a_validation_that_is_no_new_best_is_saved_at_the_end_of_the_run():
    """Without this save, a start of the same command repeats the last validation. An equal accuracy is no new best."""
    for right in (lambda step: 8 - step, lambda step: 5):
        run = fitted(right=right)
        assert run.what("save") == "save4 save4 save8 save8"
        assert run.saver.saved[-1] == asdict(run.progress)
        assert (run.progress.evaluated, run.progress.best["step"]) == (8, 4)


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
    run = fitted(total=4, weights=("model", "ema"), best_by="ema")
    model, ema = run.events("validate")
    assert (model["weights"], ema["weights"]) == ("model", "ema")
    for event in (model, ema):
        assert (event["step"], event["epoch"], event["top1"], event["num_images"]) == (4, 1.0, 50.0, 8)
        assert event.keys() >= {"loss", "top5"}
    assert run.progress.best == {"step": 4, "top1": 50.0, "top5": 100.0, "weights": "ema"}
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


def test_a_best_of_a_repeated_validation_is_saved_at_the_same_step():
    """`best` must link to a checkpoint of the same step, because the next step changes the weights."""
    run = fitted(right=lambda step: 8 - step, progress=Progress(step=4), save_every=100)
    assert run.bests() == [(4, 4), (8, 4), (8, 4)]


@pytest.mark.parametrize(
    ("step", "evaluated", "actions"),
    [(4, 4, "evaluate8 save8"), (8, 8, ""), (8, 4, "evaluate8 save8")],
    ids=["was validated", "is complete", "was stopped in the last validation"],
)
def test_nothing_is_done_twice(step, evaluated, actions):
    best = {"step": evaluated, "top1": 100.0}
    run = fitted(progress=Progress(step=step, evaluated=evaluated, best=best), save_every=100)
    assert run.what("step") == " ".join(f"step{number}" for number in range(step, 8))
    assert run.what("evaluate", "save").removeprefix("save8 ") == actions
    assert run.progress.best == best


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
    assert run.logger.advanced == 8  # Skipped steps count as steps.


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


@pytest.mark.parametrize("total", [8, 2, 1])
def test_a_dry_run_takes_some_steps_and_one_batch(total):
    """A dry run also finds a loss that is not finite."""
    run = Run(total=total, weights=("model", "ema"), loss_of=losses(0))
    seconds, validation = run.trainer.dry_run()
    assert len(seconds) == max(total - 1, 1)  # The first step warms up.
    assert min(*seconds, validation, 1.0) > 0
    assert run.what("step", "read") == " ".join(f"step{number} read{number}" for number in range(total))
    assert [logits.calls for logits in run.models.values()] == [1, 1]
    assert run.what("save", "train", "validate") == ""
    assert run.logger.bars == []
    assert run.logger.texts[0].startswith("warning: the loss is nan in micro-batch 2 of 2 in step 1")


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
