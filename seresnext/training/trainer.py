"""The training loop: step, log, save, evaluate, until the end of the plan or a stop request."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import TypeAlias

from torch import nn

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.substitute import BadImageCounter
from seresnext.distributed import World
from seresnext.evaluation import evaluate, recalibrate
from seresnext.evaluation.statistics import describe_classes
from seresnext.metrics.logger import RunLogger
from seresnext.metrics.speed import SpeedMeter, device_usage
from seresnext.metrics.watch import Watch
from seresnext.process.signals import StopRequest
from seresnext.recipe.schema import Recipe
from seresnext.runtime import PRECISIONS
from seresnext.training.nonfinite import NONFINITE_VALIDATION, describe_skip, record
from seresnext.training.plan import Plan, Progress, choose_best
from seresnext.training.profile import StepProfiler
from seresnext.training.result import PendingResult, StepResult
from seresnext.training.saving import Saver
from seresnext.training.schedule import Schedule
from seresnext.training.step import TrainingStep

Batches: TypeAlias = AbstractContextManager[Iterator[DeviceBatch]]


@dataclass(kw_only=True, eq=False)
class Trainer:
    """A run in progress: the plan, the progress, and the objects that the loop works with.

    `train_batches(start, end)` gives this rank's micro-batches of steps, `names(step, replica)` the samples of a
    micro-batch, for messages. `val_batches()` gives this rank's part of the `num_val_batches` batches of a validation.
    `models` are the models to validate: `model`, and `ema` if the run has an EMA.
    """

    world: World
    recipe: Recipe
    plan: Plan
    progress: Progress
    step: TrainingStep
    schedule: Schedule
    train_batches: Callable[[int, int], Batches]
    names: Callable[[int, int], list[str]]
    bad_images: BadImageCounter
    val_batches: Callable[[], Batches]
    num_val_batches: int
    models: Mapping[str, nn.Module]
    classes: Sequence[str]
    saver: Saver
    logger: RunLogger
    stop: StopRequest
    profiler: StepProfiler = field(default_factory=StepProfiler)

    def __post_init__(self) -> None:
        self._stopping = False
        self._precision = PRECISIONS[self.recipe.runtime.precision]
        self._last_submitted = self._last_written = replace(self.progress)
        self._pending: PendingResult | None = None
        self._result: StepResult | None = None
        self._speed = SpeedMeter()
        timer, plan = self.step.timer, self.plan
        self._watch = Watch(self.logger, self.world, timer, self.names, plan.steps_per_epoch, plan.global_size)

    def fit(self) -> bool:
        """Train until the plan is complete, or until a stop request. Return whether the plan is complete.

        Raises TrainingStopped after too many skipped steps in a row. Raises store.SaveError if a checkpoint cannot be
        written: the last one, or any if `checkpoint.on_failure` is `stop`.
        """
        progress = self.progress
        with self.saver:
            self._run_steps()
            self._wait_for_save()
            # The last save may have failed. A run that is stopped before its first step also gets a checkpoint.
            if progress != self._last_submitted or progress.step == 0:
                self._save()
            self.saver.finish()
        return not self._stopping

    def _run_steps(self) -> None:
        """Take the steps, and do what is due after each."""
        progress, plan = self.progress, self.plan
        self._stopping = self.world.any(self.stop.requested)
        if self._stopping:
            return
        with (
            self.train_batches(progress.step, plan.total) as batches,
            self.logger.console.bar("train", plan.total, progress.step) as self.logger.bar,
            self.profiler,
        ):
            if progress.step == 0:
                batches = self.logger.draw_first(batches, self.step.mix)
            self._save_and_evaluate()  # A run that was stopped during a validation repeats this validation.
            while progress.step < plan.total and not plan.is_complete(progress) and not self._stopping:
                with self.profiler.tracing(progress.step, self._speed):
                    self._take_step(batches)
                self._log()
                self._save_and_evaluate()
            self._finish_step()
            self.bad_images.share()

    def _take_step(self, batches: Iterator[DeviceBatch]) -> None:
        """Queue a step, then finish the step before, whose result has arrived by now."""
        step = self.progress.step
        self.world.heartbeat.activity = f"step {step + 1}"
        pending = self.step(
            batches,
            step=step,
            lr=self.schedule.lr_at(step),
            stop=self.stop.requested,
            save_failed=self.saver.has_failed,
            bad_images=self.bad_images.pending,
        )
        self.progress.step += 1
        self._finish_step()
        self._pending = pending

    def _finish_step(self) -> None:
        """Process the pending result, if there is one. All ranks do so at the same place and see the same numbers."""
        if self._pending is None:
            return
        result = self._result = self._pending.result()
        self._pending = None
        if result.save_failed:
            self._wait_for_save()
        if result.bad_images:
            self.bad_images.share()
        self._stopping = self._stopping or result.stop
        progress = self.progress
        progress.add(result, self.plan.global_size)
        if not result.skipped:
            self._watch.check_step(result.step, result.losses, result.grad_norm)
        if result.skipped and not result.overflowed:  # The scaler of fp16 handles overflows.
            self._report_skip(result)
        if not self.profiler.covers(result.step):
            self._speed.add(self.plan.global_size, result.data_wait)
        self.logger.bar.update()

    def _report_skip(self, result: StepResult) -> None:
        """Warn about a skipped step. Raise TrainingStopped after too many in a row, on all ranks at the same place."""
        progress, skip = self.progress, describe_skip(result, self.names)
        progress.skips_in_a_row += 1
        progress.history = record(progress.history, skip.step, skip.reason, skip.samples)
        event = {"event": "skipped", **asdict(skip), "epoch": skip.step / self.plan.steps_per_epoch}
        self.logger.write(event, text=skip.warning)
        if progress.skips_in_a_row >= self.recipe.optimizer.stop_after_skips:
            raise skip.to_error(progress.skips_in_a_row)

    def _log(self) -> None:
        """Log what is due after this step: the means since the last line, and the means of an epoch."""
        plan, progress = self.plan, self.progress
        if plan.is_due(plan.log_every, progress.step):
            self._finish_step()
            assert self._result is not None
            speed = self._speed.read("train")
            rates = {"lr": self.schedule.lr_at(self._result.step), **speed._asdict()}
            fields = {**progress.take_line(), **rates, "grad_norm": self._result.grad_norm}
            fields |= {**device_usage(self.world.device), "total_steps": plan.total}
            self._write("train", fields, self._speed.seconds_left(progress.step, plan.total))
            self._watch.check_interval(progress.step, speed, self.step.image_size)
        if progress.step % plan.steps_per_epoch == 0:
            self._finish_step()
            rate = self._speed.read("epoch").images_per_second
            self._write("epoch", {**progress.take_means("epoch"), "images_per_second": rate})

    def _write(self, event: str, fields: Mapping[str, object], seconds_left: float | None = None) -> None:
        place = {"event": event, "step": self.progress.step, "epoch": self.progress.step / self.plan.steps_per_epoch}
        self.logger.write({**place, **fields}, seconds_left)

    def _save_and_evaluate(self) -> None:
        """Save and validate after this step, if due.

        The save comes first, so that an error in the validation loses no step; the file is written during the
        validation. A new best is saved again in the same file, while the model still has the validated weights.
        """
        progress, plan = self.progress, self.plan
        evaluates = progress.step not in (0, progress.evaluated) and plan.is_due(plan.evaluate_every, progress.step)
        saves = progress.step > 0 and (evaluates or plan.is_due(plan.save_every, progress.step))
        if saves and progress.step != self._last_submitted.step:
            self._save()
        if evaluates:
            self._evaluate()
            if progress.best != self._last_submitted.best:
                self._save()

    def _evaluate(self) -> None:
        """Validate all models and record the best. After a stop request, the resumed run repeats the validation."""
        progress, settings, step = self.progress, self.recipe.evaluation, self.progress.step
        self._finish_step()
        self.world.heartbeat.activity = f"the validation after step {step}"
        results = {}
        with self._speed.paused():
            if step == self.plan.total:
                self._recalibrate()
            if self._stopping:
                return
            rounds = math.ceil(self.num_val_batches / self.world.size)
            for weights, model in self.models.items():
                with self.val_batches() as batches, self.logger.console.bar("validate", rounds) as bar:
                    results[weights] = evaluate(
                        model,
                        batches,
                        num_batches=self.num_val_batches,
                        world=self.world,
                        precision=self._precision,
                        stop_requested=self._stop_requested,
                        on_round=bar.update,
                    )
                if results[weights] is None:
                    self._stopping = True
                    return
        chosen = results[settings.weights]
        if not math.isfinite(chosen.metrics["loss"]):
            progress.history = record(progress.history, step, NONFINITE_VALIDATION)
        progress.evaluated = step
        progress.best = choose_best(progress.best, chosen, step, settings)
        for weights, result in results.items():
            is_last = result is chosen and self.plan.is_complete(progress)
            classes = {"per_class": describe_classes(result.counts, self.classes)} if is_last else {}
            self._write("validate", {**result.to_dict(), "weights": weights, **classes})

    def _recalibrate(self) -> None:
        """Measure the BatchNorm statistics of all models again, if the recipe asks for this, unless a stop comes.

        The new statistics do not depend on the old ones, so a resumed run repeats the recalibration.
        """
        section, start = self.recipe.evaluation.recalibrate, self.plan.total
        if section is None:
            return
        end = start + math.ceil(section.images / self.plan.global_size)  # Steps that would come after the last one.
        for model in self.models.values():
            with self.train_batches(start, end) as batches:
                precision, is_stopping = self._precision, self._stop_requested
                if not recalibrate(model, batches, world=self.world, precision=precision, stop_requested=is_stopping):
                    self._stopping = True
                    return

    def _stop_requested(self) -> bool:
        return self.stop.requested or self._stopping

    def _save(self) -> None:
        self._finish_step()
        self.world.heartbeat.activity = f"the save after step {self.progress.step}"
        with self._speed.paused():
            self._wait_for_save()
            self.saver.save(self.progress.step, asdict(self.progress))
        self._last_submitted = replace(self.progress)

    def _wait_for_save(self) -> None:
        """Wait for the last save. If the save failed and training continues, go back to the best that has a file."""
        if self.saver.wait():
            self._last_written = self._last_submitted
            return
        if self.progress.best == self._last_submitted.best:
            self.progress.best = self._last_written.best
        self._last_submitted = self._last_written
