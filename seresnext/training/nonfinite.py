"""Losses and gradients that are not finite: skipped steps, the end after too many of these, and validations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from seresnext.errors import TrainingStopped
from seresnext.training.plan import Progress
from seresnext.training.step import StepResult

# How many samples a message and a checkpoint name; a person looks at a few, and `metrics.jsonl` has the rest.
_NAMED_SAMPLES = 16
# How many skipped steps a checkpoint remembers, the latest, so that it stays small whatever happens.
_REMEMBERED = 1000
_VALIDATION = "the validation loss"  # The reason of a validation begins with these words.


@dataclass(frozen=True)
class NonFiniteStep:
    """A step that changed nothing: its number, counted from 1, why, and the samples that may be the cause."""

    step: int
    reason: str
    samples: list[str]

    @property
    def warning(self) -> str:
        """For the person at the terminal."""
        return (
            f"warning: {self.reason} in step {self.step}: it was skipped, and the model is as before it. "
            f"Its samples:\n  {self._listing()}"
        )

    @property
    def event(self) -> dict[str, Any]:
        """For `metrics.jsonl`."""
        return {"event": "skipped", "step": self.step, "reason": self.reason, "samples": self.samples}

    def remembered(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The history of a run, as its checkpoints have it, with this step; a new list."""
        entry = {"step": self.step, "reason": self.reason, "samples": self.samples[:_NAMED_SAMPLES]}
        return [*history, entry][-_REMEMBERED:]

    def give_up(self, in_a_row: int) -> TrainingStopped:
        """What to raise when it is one too many."""
        skipped = "step was" if in_a_row == 1 else f"{in_a_row} steps in a row were"
        return TrainingStopped(
            f"{self.reason} in step {self.step}; {skipped} skipped, after which the run gives up "
            f"(optimizer.stop_after_skips). A resume continues from the last checkpoint and meets the same "
            f"images. The usual causes are a learning rate that is too high (optimizer.lr), too little warm-up "
            f"(schedule.warmup) or fp16; clipping (optimizer.clip_norm) may help. Its samples:\n  {self._listing()}"
        )

    def _listing(self) -> str:
        more = len(self.samples) - _NAMED_SAMPLES
        return "\n  ".join(self.samples[:_NAMED_SAMPLES]) + (f"\n  and {more} more" if more > 0 else "")


def with_validation(
    history: list[dict[str, Any]], step: int, loss: float, validated_before: int
) -> list[dict[str, Any]]:
    """Return the history of a run, with a new entry for the validation after `step` if the loss is not finite.

    `validated_before` is the step of the previous validation. The entry has the fields of a skipped step, because older
    versions know no other entry, and no samples.
    """
    if math.isfinite(loss):
        return history
    reasons = _validations(history)
    reason = reasons.get(validated_before, f"{_VALIDATION} is not finite since step {step}")
    return [*history, {"step": step, "reason": reason, "samples": []}][-_REMEMBERED:]


def doubt_about(progress: Progress) -> str | None:
    """Return the reason to doubt a finished run: the loss of the last or the best validation is not finite."""
    reasons = _validations(progress.history)
    if progress.evaluated in reasons:
        return reasons[progress.evaluated]
    best = progress.best["step"] if progress.best else None
    return f"{_VALIDATION} of the best checkpoint, of step {best}, is not finite" if best in reasons else None


def _validations(history: list[dict[str, Any]]) -> dict[int, str]:
    """Return the reasons of the validations in a history, by step."""
    reasons = [(entry.get("step"), str(entry.get("reason"))) for entry in history]
    return {step: reason for step, reason in reasons if isinstance(step, int) and reason.startswith(_VALIDATION)}


def describe_skip(report: StepResult, names: Callable[[int, int], list[str]]) -> NonFiniteStep:
    """Why a step was skipped. `names` gives the samples of (step, replica).

    A loss tells its micro-batch. A gradient is that of all of them, whichever it came from.
    """
    count = len(report.losses)
    bad = [replica for replica, loss in enumerate(report.losses) if not math.isfinite(loss)]
    if bad:
        numbers = ", ".join(str(replica + 1) for replica in bad)
        batches = "micro-batch" if len(bad) == 1 else "micro-batches"
        reason = f"the loss is {report.losses[bad[0]]} in {batches} {numbers} of {count}"
    else:
        reason = f"the gradient's norm is {report.grad_norm}"
    samples = [name for replica in bad or range(count) for name in names(report.step, replica)]
    return NonFiniteStep(report.step + 1, reason, samples)
