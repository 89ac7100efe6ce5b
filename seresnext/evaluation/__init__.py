"""Exact evaluation of a model on a split."""

from seresnext.evaluation.evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
