"""Evaluation of a model on a split, and recalibration of BatchNorm statistics."""

from seresnext.evaluation.evaluate import METRICS, Evaluation, evaluate
from seresnext.evaluation.recalibrate import recalibrate

__all__ = ["METRICS", "Evaluation", "evaluate", "recalibrate"]
