"""The best validation of a run: the choice by `evaluation.best_by`, and texts about the best and about the end."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from seresnext.evaluation import Evaluation
from seresnext.metrics.console import describe
from seresnext.recipe.schema import EvaluationSection
from seresnext.training.plan import Progress

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
