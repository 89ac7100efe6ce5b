"""Losses and gradients that are not finite: skipped steps, the end after too many of them, and validations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from seresnext.errors import TrainingStopped, listed
from seresnext.training.plan import Progress
from seresnext.training.result import StepResult

_NAMED_SAMPLES = 16  # samples in a message and in a checkpoint; `metrics.jsonl` has all
_LONGEST_HISTORY = 1000  # entries in a checkpoint, the latest ones, so that the file stays small
NONFINITE_VALIDATION = "the validation loss is not finite"  # the reason of a validation


@dataclass(frozen=True)
class NonFiniteStep:
    """A step that changed nothing: the number, counted from 1, the reason, and the samples that may be the cause."""

    step: int
    reason: str
    samples: list[str]

    @property
    def warning(self) -> str:
        """Return the warning for the terminal."""
        return (
            f"warning: {self.reason} in step {self.step}. The step was skipped: the model is unchanged. "
            f"Samples of the step:\n  {self._listing()}"
        )

    def to_error(self, in_a_row: int) -> TrainingStopped:
        """Return the error that ends the run after `in_a_row` skipped steps."""
        skipped = "step was" if in_a_row == 1 else f"{in_a_row} steps in a row were"
        return TrainingStopped(
            f"{self.reason} in step {self.step}; {skipped} skipped, the limit of optimizer.stop_after_skips. Lower the "
            "learning rate (optimizer.lr), warm up longer (schedule.warmup), clip gradients (optimizer.clip_norm), or "
            "avoid fp16 (runtime.precision). A resume continues from the last checkpoint and gets the same images. "
            f"Samples of the step:\n  {self._listing()}"
        )

    def _listing(self) -> str:
        return "\n  ".join(listed(self.samples, _NAMED_SAMPLES))


def describe_skip(result: StepResult, names: Callable[[int, int], list[str]]) -> NonFiniteStep:
    """Describe why a step was skipped. `names(step, replica)` gives the samples.

    A loss belongs to one micro-batch. The gradient belongs to all micro-batches, so all samples are named.
    """
    count = len(result.losses)
    bad = [replica for replica, loss in enumerate(result.losses) if not math.isfinite(loss)]
    if bad:
        numbers = ", ".join(str(replica + 1) for replica in bad)
        batches = "micro-batch" if len(bad) == 1 else "micro-batches"
        reason = f"the loss is {result.losses[bad[0]]} in {batches} {numbers} of {count}"
    else:
        reason = f"the gradient's norm is {result.grad_norm}"
    samples = [name for replica in bad or range(count) for name in names(result.step, replica)]
    return NonFiniteStep(result.step + 1, reason, samples)


def record(history: list[dict[str, Any]], step: int, reason: str, samples: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return a new history of a run, with a skipped step, or a validation with a loss that is not finite, at the end.

    An entry of a validation has no samples: version 0.1.0 knows no entries with other fields.
    """
    return [*history, {"step": step, "reason": reason, "samples": [*samples[:_NAMED_SAMPLES]]}][-_LONGEST_HISTORY:]


def nonfinite_validation(progress: Progress) -> str | None:
    """Return a warning about a finished run if the loss of the last or of the best validation is not finite."""
    bad = {entry["step"] for entry in progress.history if str(entry.get("reason")).startswith(NONFINITE_VALIDATION)}
    best = progress.best["step"] if progress.best else 0
    steps = sorted({best, progress.evaluated} & bad)
    return f"{NONFINITE_VALIDATION} after step {' and '.join(map(str, steps))}" if steps else None
