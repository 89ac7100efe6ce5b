"""What the opinions of a network show: suspected wrong labels, outliers, and classes that look like one."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from seresnext.evaluation.statistics import confusion_matrix
from seresnext.process.packages import extra

_SAME = 1 / 3  # of the images of two classes; 1/2 is a coin
_FENCE = 3.0  # interquartile ranges beyond a quartile: "far out" in Tukey 1977, Exploratory Data Analysis, section 2D


class ClassPair(NamedTuple):
    """Two classes (numbers), the images that were predicted as one of the two, and the share that is mixed up."""

    first: int
    second: int
    images: int
    mixed: float


def suspected_labels(labels: np.ndarray, probabilities: np.ndarray, fewest: int) -> np.ndarray:
    """Return the indices of images whose label is probably wrong, the least probable label first (cleanlab).

    labels: int N. probabilities: out of sample, N K. Classes of fewer than `fewest` images are spared: a network learns
    nothing about such a class. The filter is confident learning (Northcutt et al. 2021, arXiv:1911.00068).
    """
    with extra("report"):
        from cleanlab.filter import find_label_issues
    there = np.unique(labels)  # cleanlab needs an image of each class.
    own = np.searchsorted(there, labels)
    columns = probabilities[:, there] / np.maximum(probabilities[:, there].sum(1, keepdims=True), 1e-9)
    if len(there) < 2:
        return np.empty(0, np.int64)
    with warnings.catch_warnings(action="ignore"):  # of classes without a confident image
        found = find_label_issues(own, columns, return_indices_ranked_by="self_confidence", n_jobs=1)
    is_large = np.bincount(own)[own] >= fewest
    return np.array([index for index in found if is_large[index]], np.int64)


def far_out(values: np.ndarray, high: bool = True) -> np.ndarray:
    """Return the indices of values (positive) far above, or far below, the others, the farthest first.

    The fence is 3 interquartile ranges of the logarithms beyond the quartile, and at least a factor of 2.
    """
    logs = np.log(np.maximum(values, 1e-9)) * (1 if high else -1)
    low, top = np.percentile(logs, (25, 75)) if len(logs) else (0.0, 0.0)
    found = np.flatnonzero(logs > top + max(_FENCE * (top - low), np.log(2)))
    return found[np.argsort(-logs[found], kind="stable")]


def classes_like_one(labels: np.ndarray, probabilities: np.ndarray) -> list[ClassPair]:
    """Return the pairs of classes that a network cannot tell apart, the most mixed first.

    Of the images of two classes that were predicted as one of the two, a third or more (mean of both classes) got the
    other class.
    """
    confusion = confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    own = np.diag(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong = confusion / (confusion + own[:, None])  # of the images of the row that got row or column
    mixed, found = np.nan_to_num((wrong + wrong.T) / 2), []
    for first, second in np.argwhere(np.triu(mixed >= _SAME, 1)).tolist():
        images = own[first] + own[second] + confusion[first, second] + confusion[second, first]
        found.append(ClassPair(first, second, int(images), float(mixed[first, second])))
    return sorted(found, key=lambda pair: -pair.mixed)
