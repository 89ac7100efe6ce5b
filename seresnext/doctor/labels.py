"""Suspected wrong labels, values far out, and classes that look like one."""

from __future__ import annotations

import warnings

import numpy as np

from seresnext.evaluation.statistics import confusion_matrix
from seresnext.process.packages import extra

MIXED = 1 / 3
"""The share from which two classes look like one. A coin has 1/2."""
_FENCE = 3.0  # interquartile ranges beyond a quartile: "far out" in Tukey 1977, Exploratory Data Analysis, section 2D


def suspected_labels(labels: np.ndarray, probabilities: np.ndarray, fewest: int) -> np.ndarray:
    """Return the indices of images whose label is probably wrong, the least probable label first.

    labels: int N. probabilities: out of sample, N K. Classes of fewer than `fewest` images are spared: a network learns
    nothing about such a class. The method is confident learning (Northcutt et al. 2021, arXiv:1911.00068), by cleanlab.
    """
    with extra("report"):
        from cleanlab.filter import find_label_issues
    there, own = np.unique(labels, return_inverse=True)  # cleanlab needs an image of each class.
    if len(there) < 2:
        return np.empty(0, np.int64)
    columns = probabilities[:, there] / np.maximum(probabilities[:, there].sum(1, keepdims=True), 1e-9)
    with warnings.catch_warnings(action="ignore"):  # of classes without a confident image
        options = {"filter_by": "confident_learning", "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
        found = find_label_issues(own, columns, **options)
    is_large = np.bincount(own)[own] >= fewest
    is_other = probabilities.argmax(1) != labels
    return found[(is_large & is_other)[found]]


def far_out(values: np.ndarray, high: bool = True) -> np.ndarray:
    """Return the indices of positive values far above, or far below, the others, the farthest first.

    The fence is 3 interquartile ranges of the logarithms beyond the quartile, and at least a factor of 2.
    """
    logs = np.log(np.maximum(values, 1e-9)) * (1 if high else -1)
    low, top = np.percentile(logs, (25, 75)) if len(logs) else (0.0, 0.0)
    found = np.flatnonzero(logs > top + max(_FENCE * (top - low), np.log(2)))
    return found[np.argsort(-logs[found], kind="stable")]


def classes_like_one(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[int, int, float]]:
    """Return pairs of classes that networks cannot tell apart, with the share that is mixed up, the largest first.

    The share counts the images of two classes that were predicted as one of the two (mean of both classes).
    """
    confusion = confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    wrong = confusion / np.maximum(confusion + np.diag(confusion)[:, None], 1)
    mixed = (wrong + wrong.T) / 2
    pairs = [(one, other, float(mixed[one, other])) for one, other in np.argwhere(np.triu(mixed >= MIXED, 1)).tolist()]
    return sorted(pairs, key=lambda pair: -pair[2])
