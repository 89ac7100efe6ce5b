"""The run, in order: step, log, save, evaluate, until the end or until asked to stop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

from torch import nn

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.substitute import BadImageCounter
from seresnext.distributed import World
from seresnext.evaluation import evaluate, recalibrate
from seresnext.metrics.logger import RunLogger
from seresnext.metrics.speed import EtaClock, SpeedMeter
from seresnext.process.stop_request import StopRequest
from seresnext.runtime import Precision
from seresnext.training.nonfinite import describe_skip, with_validation
from seresnext.training.plan import Plan, Progress
from seresnext.training.saving import Saver
from seresnext.training.schedule import Schedule
from seresnext.training.step import PendingResult, StepResult, TrainingStep


@dataclass(frozen=True)
class DryRunTimings:
    """How long things took, in seconds: one step, and by the time of one batch all validation of one time."""

    step_seconds: float
    validation_seconds: float


@dataclass(frozen=True)
class TrainData:
    """The training stream: batches from a step on, and the names of the samples of (step, replica) for messages.

    `tally` counts the images that were replaced.
    `calibration` are the batches that BatchNorm is recalibrated with after the last step, None for no recalibration.
    """

    batches: Callable[[int], AbstractContextManager[Iterator[DeviceBatch]]]
    names: Callable[[int, int], list[str]]
    tally: BadImageCounter
    calibration: Callable[[], AbstractContextManager[Iterator[DeviceBatch]]] | None = None


@dataclass(frozen=True)
class ValidationData:
    """The validation split: this rank's batches from the first on, and the number of batches of all ranks."""

    batches: Callable[[], AbstractContextManager[Iterator[DeviceBatch]]]
    num_batches: int


class Trainer:
    """A run: its plan, its progress and what they act on.

    `models` are what validation looks at, by the name of their weights (`model`, and `ema` if there is one); `chosen`
    names the one whose top-1 accuracy decides which checkpoint is the best.
    """

    def __init__(
        self,
        *,
        world: World,
        plan: Plan,
        progress: Progress,
        step: TrainingStep,
        schedule: Schedule,
        train: TrainData,
        validation: ValidationData,
        models: dict[str, nn.Module],
        chosen: str,
        precision: Precision,
        saver: Saver,
        journal: RunLogger,
        stop: StopRequest,
    ) -> None:
        self.progress = progress
        self._world = world
        self._plan = plan
        self._step = step
        self._schedule = schedule
        self._train = train
        self._validation = validation
        self._models = models
        self._chosen = chosen
        self._precision = precision
        self._saver = saver
        self._journal = journal
        self._stop = stop
        self._stopping = False
        self._saved = replace(progress)
        self._durable = replace(progress)
        self._unread: tuple[int, PendingResult] | None = None
        self._report: StepResult | None = None
        self._speed = SpeedMeter()
        self._eta = EtaClock(plan.total)

    def fit(self) -> bool:
        """Train to the end of the plan, which may come early, or until asked to stop. Returns whether it was reached.

        Raises TrainingStopped when too many steps in a row were skipped, and store.SaveError when a checkpoint could
        not be written and the recipe does not go on without, or when it is the last one.
        """
        progress = self.progress
        with self._saver:
            self._train_on()
            self._settle()
            # Also when the save that just failed was the last, and when nothing was done: a run that is asked to stop
            # before its first step has a checkpoint, too.
            if progress != self._saved or progress.step == 0:
                self._save()
            self._saver.finish()
        return not self._stopping

    def _train_on(self) -> None:
        """Steps, and what is due after each, to the end or until asked to stop."""
        progress, plan = self.progress, self._plan
        self._stopping = self._world.any(self._stop.requested)  # Already, before the first step.
        if self._stopping:
            return
        with self._train.batches(progress.step) as batches, self._journal.training(progress.step, plan.total):
            self._save_and_evaluate()  # A run that was stopped during validation has that still to do.
            while progress.step < plan.total and not plan.is_complete(progress) and not self._stopping:
                self._take_step(batches)
                if plan.is_due(plan.log_every, progress.step):
                    self._log()
                self._save_and_evaluate()
            self._read()
            self._train.tally.share()

    def dry_run(self) -> DryRunTimings:
        """Take two steps and validate one batch, and say how long the second step and the batch took."""
        seconds = []
        with self._train.batches(self.progress.step) as batches:
            for _ in range(min(2, self._plan.total)):
                started = time.monotonic()
                self._take_step(batches)
                self._read()
                seconds.append(time.monotonic() - started)
        with self._validation.batches() as batches:
            own = list(itertools.islice(batches, 1))
            started = time.monotonic()
            for model in self._models.values():
                first = min(self._world.size, self._validation.num_batches)
                evaluate(model, iter(own), num_batches=first, world=self._world, precision=self._precision)
            validation = (time.monotonic() - started) * math.ceil(self._validation.num_batches / self._world.size)
        return DryRunTimings(seconds[-1], validation)

    def _take_step(self, batches: Iterator[DeviceBatch]) -> None:
        """Queue a step, then read the report of the one before it, which by then costs hardly any waiting."""
        step = self.progress.step
        self._world.set_activity(f"step {step + 1}")
        report = self._step(
            batches,
            step=step,
            lr=self._schedule.lr_at(step),
            stop=self._stop.requested,
            save_failed=self._saver.has_failed,
            bad_images=self._train.tally.pending,
        )
        self.progress.step += 1
        self._read()
        self._unread = (step, report)

    def _read(self) -> None:
        """Take in the report not read so far. All ranks do so at the same place and see the same numbers."""
        if self._unread is None:
            return
        report = self._step.read(*self._unread)
        self._unread = None
        if report.save_failed:
            self._settle()
        if report.bad_images:
            self._train.tally.share()
        self._report = report
        self._stopping = self._stopping or report.stop
        if report.skipped:
            self._take_note_of_skip(report)
        else:
            self.progress.unlogged_loss += report.loss
            self.progress.unlogged_steps += 1
            self.progress.skips_in_a_row = 0
        self._speed.add(self._plan.global_size, report.data_wait)
        self._journal.advance()

    def _log(self) -> None:
        self._read()
        report, progress = self._report, self.progress
        assert report is not None
        speed = self._speed.read()
        self._journal.write(
            {
                "event": "train",
                "step": progress.step,
                "epoch": progress.step / self._plan.steps_per_epoch,
                "loss": progress.unlogged_loss / progress.unlogged_steps if progress.unlogged_steps else None,
                "skipped": progress.unlogged_skips,
                "lr": self._schedule.lr_at(report.step),
                "images_per_second": speed.images_per_second,
                "data_wait": speed.data_wait,
                "grad_norm": report.grad_norm,
            },
            self._eta.update(progress.step),
        )
        progress.unlogged_loss, progress.unlogged_steps, progress.unlogged_skips = 0.0, 0, 0

    def _take_note_of_skip(self, report: StepResult) -> None:
        """Say which step was skipped and why; after too many in a row end the run, on all ranks at the same place.

        Those that the scaler of fp16 skips while it looks for its scale are no fault of the run's, and only counted.
        """
        progress = self.progress
        progress.unlogged_skips += 1
        if report.overflowed:
            return
        progress.skips_in_a_row += 1
        skip = describe_skip(report, self._train.names)
        progress.history = skip.remembered(progress.history)
        self._journal.write({**skip.event, "epoch": skip.step / self._plan.steps_per_epoch}, text=skip.warning)
        if progress.skips_in_a_row >= self._plan.stop_after_skips:
            raise skip.give_up(progress.skips_in_a_row)

    def _save_and_evaluate(self) -> None:
        """Save and validate after this step, if due.

        The save comes first, and is written during the validation: an error in a validation then costs no step. A new
        best is saved once more, in the same file, while the model still has the validated weights.
        """
        progress, plan = self.progress, self._plan
        evaluates = progress.step not in (0, progress.evaluated) and plan.is_due(plan.evaluate_every, progress.step)
        saves = progress.step > 0 and (evaluates or plan.is_due(plan.save_every, progress.step))
        if saves and progress.step != self._saved.step:
            self._save()
        if evaluates:
            self._evaluate()
            if self._is_new_best():
                self._save()

    def _evaluate(self) -> None:
        """Validate all candidates and remember the best; a stop leaves the validation to be done."""
        progress = self.progress
        self._read()
        self._world.set_activity(f"the validation after step {progress.step}")
        results = {}
        with self._speed.paused():
            if progress.step == self._plan.total and not self._recalibrate():
                self._stopping = True
                return
            num_batches = self._validation.num_batches
            rounds = math.ceil(num_batches / self._world.size)
            for weights, model in self._models.items():
                with (
                    self._validation.batches() as batches,
                    self._journal.validation(rounds) as advance,
                ):
                    results[weights] = evaluate(
                        model,
                        batches,
                        num_batches=num_batches,
                        world=self._world,
                        precision=self._precision,
                        stop_requested=self._stop_requested,
                        on_round=advance,
                    )
                if results[weights] is None:
                    self._stopping = True
                    return
        for weights, result in results.items():
            epoch = progress.step / self._plan.steps_per_epoch
            event = {"event": "validate", "step": progress.step, "epoch": epoch, **result.to_dict(), "weights": weights}
            self._journal.write(event)
        chosen = results[self._chosen].metrics
        progress.history = with_validation(progress.history, progress.step, chosen["loss"], progress.evaluated)
        progress.evaluated = progress.step
        if progress.best is None or chosen["top1"] > progress.best["top1"]:
            best = {"step": progress.step, "top1": chosen["top1"], "top5": chosen["top5"], "weights": self._chosen}
            progress.best = best

    def _recalibrate(self) -> bool:
        """Before the last validation measure the statistics of all candidates anew, if the recipe wants it.

        The result does not depend on the old statistics, so a run that is stopped here does it again. Returns False
        when it was stopped.
        """
        if self._train.calibration is None:
            return True
        for model in self._models.values():
            with self._train.calibration() as batches:
                done = recalibrate(
                    model,
                    batches,
                    world=self._world,
                    precision=self._precision,
                    stop_requested=self._stop_requested,
                )
                if not done:
                    return False
        self._train.tally.share()
        return True

    def _stop_requested(self) -> bool:
        return self._stop.requested or self._stopping

    def _is_new_best(self) -> bool:
        return self.progress.best != self._saved.best

    def _save(self) -> None:
        self._read()
        self._world.set_activity(f"the save after step {self.progress.step}")
        with self._speed.paused():
            self._settle()
            self._saver.save(self.progress.step, asdict(self.progress))
        self._saved = replace(self.progress)

    def _settle(self) -> None:
        """Wait for the last save. If it failed and the run goes on, the best is again the best there is a file of."""
        if self._saver.settle():
            self._durable = self._saved
            return
        if self.progress.best == self._saved.best:
            self.progress.best = self._durable.best
        self._saved = self._durable
