"""What a run will do and how far it has come, in optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from seresnext.recipe.schema import Recipe


@dataclass(frozen=True)
class Plan:
    """How long everything is, in optimizer steps. `global_size` is the images of one step.

    `patience` is how old the best validation may grow before training ends (None: as it likes). `keep_every`: the
    checkpoints after every so many steps stay for good (None: no more than the newest). `stop_after_skips`: how many
    steps in a row may be skipped, the last of them ending the run.
    """

    total: int
    steps_per_epoch: int
    log_every: int
    evaluate_every: int
    save_every: int
    global_size: int
    patience: int | None = None
    keep_every: int | None = None
    stop_after_skips: int = 1

    @property
    def evaluations(self) -> int:
        """How many validations the run has."""
        return math.ceil(self.total / self.evaluate_every)

    def is_due(self, every: int, step: int) -> bool:
        """Whether something done every so many steps is due after `step` completed steps; at the end it always is."""
        return step % every == 0 or step == self.total

    def has_stalled(self, progress: Progress) -> bool:
        """Whether the last validation found the best one too old."""
        return (
            self.patience is not None
            and progress.best is not None
            and progress.evaluated - progress.best["step"] >= self.patience
        )

    def is_complete(self, progress: Progress) -> bool:
        """Whether nothing is left to do: the end, whichever, is reached and validated."""
        at_end = progress.step == self.total or self.has_stalled(progress)
        return at_end and progress.step == progress.evaluated


@dataclass
class Progress:
    """Everything the loop carries from step to step besides tensors. Every checkpoint holds all of it.

    `step` counts completed steps, skipped ones too; `evaluated` is the step after which validation last ran to its end;
    the `unlogged` fields are the losses since the last line of metrics and the steps skipped, so that a resumed run
    writes the same next line. `history` has the skipped steps and the validations with a loss that is not finite
    (training/skipping.py). A new entry makes a new list.
    """

    step: int = 0
    evaluated: int = 0
    best: dict[str, Any] | None = None
    unlogged_loss: float = 0.0
    unlogged_steps: int = 0
    unlogged_skips: int = 0
    skips_in_a_row: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def logged(self) -> int:
        """The step of the last `train` event, 0 before the first."""
        return self.step - self.unlogged_steps - self.unlogged_skips


def build_plan(recipe: Recipe, steps_per_epoch: int) -> Plan:
    """All lengths of a recipe in optimizer steps."""
    return Plan(
        total=recipe.length.steps(steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        log_every=recipe.logging.every.steps(steps_per_epoch),
        evaluate_every=recipe.evaluation.every.steps(steps_per_epoch),
        save_every=recipe.checkpoint.every.steps(steps_per_epoch),
        keep_every=recipe.checkpoint.keep_every.steps(steps_per_epoch) if recipe.checkpoint.keep_every else None,
        global_size=recipe.batch.global_size,
        patience=recipe.early_stop.patience.steps(steps_per_epoch) if recipe.early_stop else None,
        stop_after_skips=recipe.optimizer.stop_after_skips,
    )
