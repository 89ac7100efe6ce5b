"""Exact evaluation of a model on a split, and BatchNorm statistics for it."""

from seresnext.evaluation.evaluate import Evaluation, evaluate
from seresnext.evaluation.recalibrate import recalibrate

__all__ = ["Evaluation", "evaluate", "recalibrate"]
