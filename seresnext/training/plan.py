"""The plan, the progress and the best validation of a run, in optimizer steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seresnext.evaluation import Evaluation
from seresnext.metrics.console import describe
from seresnext.recipe.schema import EvaluationSection, Recipe
from seresnext.training.result import StepResult


@dataclass(frozen=True)
class Plan:
    """The lengths and intervals of a run, in optimizer steps. `global_size` is the number of images of a step.

    Training ends early if the best validation is `patience` steps old (None: never). Checkpoints of every
    `keep_every`-th step are kept (None: only the newest). Frozen stages train from step `thaw_at` on, counted from 0
    (None: never).
    """

    total: int
    steps_per_epoch: int
    log_every: int
    evaluate_every: int
    save_every: int
    global_size: int
    patience: int | None = None
    keep_every: int | None = None
    thaw_at: int | None = None

    @property
    def evaluations(self) -> int:
        """Return the number of validations of the run."""
        return math.ceil(self.total / self.evaluate_every)

    def is_due(self, every: int, step: int) -> bool:
        """Return whether an action is due after `step` completed steps: every `every` steps, and at the end."""
        return step % every == 0 or step == self.total

    def is_complete(self, progress: Progress) -> bool:
        """Return whether the end, planned or early, is reached and validated."""
        age = progress.evaluated - progress.best["step"] if progress.best else 0
        is_stalled = self.patience is not None and age >= self.patience
        return progress.step == progress.evaluated and (progress.step == self.total or is_stalled)


WINDOWS = ("unlogged", "epoch")  # the sums of a run since the last line of metrics, and since the last end of an epoch
LATER_FIELDS = {"unlogged_correct", "unlogged_seen", "epoch_loss", "epoch_steps", "epoch_correct", "epoch_seen"}
"""Fields of `Progress` that version 0.1 did not write."""


@dataclass
class Progress:
    """The state of the training loop without tensors. Every checkpoint holds all fields.

    `step` counts completed and skipped steps. `evaluated` is the step of the last complete validation. The fields of
    WINDOWS are sums, so that a resumed run writes the same next line; `correct` counts images of `seen` images.
    `history` has the skipped steps and the validations with a loss that is not finite (nonfinite.py). A new entry makes
    a new list.
    """

    step: int = 0
    evaluated: int = 0
    best: dict[str, Any] | None = None
    unlogged_loss: float = 0.0
    unlogged_steps: int = 0
    unlogged_skips: int = 0
    unlogged_correct: int = 0
    unlogged_seen: int = 0
    epoch_loss: float = 0.0
    epoch_steps: int = 0
    epoch_correct: int = 0
    epoch_seen: int = 0
    skips_in_a_row: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def logged(self) -> int:
        """Return the step of the last `train` event, 0 before the first."""
        return self.step - self.unlogged_steps - self.unlogged_skips

    def add(self, result: StepResult, global_size: int) -> None:
        """Add the result of a step of `global_size` images to the sums."""
        if result.skipped:
            self.unlogged_skips += 1
            return
        self.skips_in_a_row = 0
        values = {"loss": result.loss, "steps": 1, "correct": result.correct, "seen": global_size}
        for window, key in itertools.product(WINDOWS, values):
            name = f"{window}_{key}"
            setattr(self, name, getattr(self, name) + values[key])

    def take_line(self) -> dict[str, Any]:
        """Return the means and the skipped steps since the last line of metrics, and start the next line."""
        line = {**self.take_means("unlogged"), "skipped": self.unlogged_skips}
        self.unlogged_skips = 0
        return line

    def take_means(self, window: str) -> dict[str, float | None]:
        """Return the mean loss and accuracy of a window, None without a step, and start the next window."""
        names = [f"{window}_{key}" for key in ("loss", "steps", "correct", "seen")]
        loss, steps, correct, seen = (getattr(self, name) for name in names)
        for name in names:
            setattr(self, name, getattr(Progress, name))  # the default
        return {"loss": loss / steps if steps else None, "top1": 100 * correct / seen if seen else None}


def build_plan(recipe: Recipe, steps_per_epoch: int) -> Plan:
    """Build the plan of a recipe: convert all durations to optimizer steps."""
    return Plan(
        total=recipe.length.steps(steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        log_every=recipe.logging.every.steps(steps_per_epoch),
        evaluate_every=recipe.evaluation.every.steps(steps_per_epoch),
        save_every=recipe.checkpoint.every.steps(steps_per_epoch),
        keep_every=recipe.checkpoint.keep_every.steps(steps_per_epoch) if recipe.checkpoint.keep_every else None,
        global_size=recipe.batch.global_size,
        patience=recipe.early_stop.patience.steps(steps_per_epoch) if recipe.early_stop else None,
        thaw_at=recipe.model.frozen_until.steps(steps_per_epoch) if recipe.model.frozen_until else None,
    )


_ALWAYS = ("top1", "top5", "balanced_accuracy", "macro_f1")


def choose_best(
    best: dict[str, Any] | None, found: Evaluation, step: int, settings: EvaluationSection
) -> dict[str, Any] | None:
    """Return the better one of the best validation so far and the validation after `step`; the earlier one if equal.

    The measure is `best_by`. A measure that is not finite is never better.
    """
    values, by = found.to_dict(), settings.best_by
    sign = -1 if by == "loss" else 1
    if not math.isfinite(values[by]) or (best and by in best and sign * values[by] <= sign * best[by]):
        return best
    return {"step": step, **{name: values[name] for name in (*_ALWAYS, by)}, "by": by, "weights": settings.weights}


def describe_best(best: Mapping[str, Any]) -> str:
    """Return the measures of the best validation: `macro F1 71.20 %, top-1 83.00 %, balanced accuracy 70.00 %`.

    The measure of the choice comes first. Version 0.1 wrote no measure: the choice was by top-1.
    """
    return describe(best, fields=tuple(dict.fromkeys((best.get("by", "top1"), "top1", "balanced_accuracy"))))


def describe_end(progress: Progress, labels: np.ndarray) -> str:
    """Return the result of a complete run. `labels` (int N) are the labels of the validation images."""
    if best := progress.best:
        largest = 100 * np.bincount(labels).max() / len(labels)
        text = f"best {describe_best(best)} after step {best['step']} ({best['weights']} weights)"
        return f"{text}; the largest class is {largest:.1f} % of the validation images"
    return "there is no best checkpoint" if progress.evaluated else "not validated"
