"""Statistics of predictions: intervals, per-class results, confusion and calibration, in float64 on the CPU."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution
BINS = 15  # of the calibration error, as in Guo et al. 2017 (arXiv:1706.04599)
_ROWS_AT_ONCE = 4096  # rows of logits in float64 at one time: 33 MB with 1,000 classes
_MOST_STEPS = 50

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion, in percent (Wilson 1927), without continuity correction."""
    share, square = correct / count, _Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def confusion_matrix(labels: Ints, predictions: Ints, num_classes: int) -> Ints:
    """Return the number of images of each pair of label (row) and prediction (column), int64 K K."""
    pairs = labels * num_classes + predictions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_results(counts: Ints) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall and F1 (0 to 100, K each) of each class from `Evaluation.counts`. 0 stands for 0 / 0."""
    correct, support, predicted = counts
    parts = ((correct, predicted), (correct, support), (2 * correct, support + predicted))
    precision, recall, f1 = (100 * _ratio(part, whole) for part, whole in parts)
    return precision, recall, f1


def class_means(counts: Ints) -> dict[str, float]:
    """Return balanced accuracy (mean recall) and macro F1 in percent: the means over the classes with images."""
    _, recall, f1 = (values[counts[1] > 0].mean() for values in class_results(counts))
    return {"balanced_accuracy": float(recall), "macro_f1": float(f1)}


def describe_classes(counts: Ints, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return `class`, `precision`, `recall`, `f1` (percent) and `support` (images) of each class."""
    precision, recall, f1 = class_results(counts)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(classes, precision, recall, f1, counts[1], strict=True)
    ]


def _ratio(part: Ints, whole: Ints) -> Floats:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)


def calibrate(logits: Floats, labels: Ints) -> dict[str, Any] | None:
    """Return the calibration of logits (N K); None if a logit is not finite, or if a half of the images is empty.

    `temperature` divides the logits; it is fitted to all images. `error` is the expected calibration error in percent.
    `error_after` is the error with temperatures that were fitted to the other half of the images. `bins` has a row for
    each bin with images, as in `calibration_bins`. `bins_after` belongs to `error_after`. The halves have every second
    image of each class, so that each half has the classes in equal shares.
    """
    half = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        half[labels == label] = np.arange((labels == label).sum()) % 2
    if not np.isfinite(logits).all() or not half.any():
        return None
    correct = logits.argmax(1) == labels
    before, after = confidences(logits), np.empty(len(labels))
    for side in (0, 1):
        temperature = fit_temperature(logits[half != side], labels[half != side])
        after[half == side] = confidences(logits[half == side], temperature)
    bins, bins_after = calibration_bins(before, correct), calibration_bins(after, correct)
    return {
        "error": calibration_error(bins),
        "error_after": calibration_error(bins_after),
        "temperature": fit_temperature(logits, labels),
        "bins": bins,
        "bins_after": bins_after,
    }


def confidences(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the largest softmax probability of each row of logits (N K)."""
    found = []
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        rows = logits[start : start + _ROWS_AT_ONCE].astype(np.float64) / temperature
        found.append(1 / np.exp(rows - rows.max(1, keepdims=True)).sum(1))
    return np.concatenate(found) if found else np.empty(0)


def calibration_bins(confidence: Floats, correct: NDArray[np.bool_]) -> list[list[float]]:
    """Return mean confidence, accuracy (both 0 to 100) and images of the bins of equal width that have images.

    Bin k has the confidences in (k / BINS, (k + 1) / BINS].
    """
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(number, minlength=BINS)
    sums = (np.bincount(number, weights=values, minlength=BINS) for values in (confidence, correct))
    mean, accuracy = (100 * _ratio(each, count) for each in sums)
    return [[float(mean[k]), float(accuracy[k]), int(count[k])] for k in range(BINS) if count[k]]


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Return the expected calibration error in percent: the mean distance of confidence and accuracy over the bins."""
    return sum(abs(mean - accuracy) * count for mean, accuracy, count in bins) / sum(count for *_, count in bins)


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """Return the temperature that minimises the cross-entropy of logits / temperature (Guo et al. 2017, section 4.2).

    The cross-entropy is convex in b = 1 / temperature, so Newton's steps within a bracket find the minimum. Without a
    minimum the temperature is a bound: 0.01 if every image is right, 100 if the best b would be 0 or negative.
    """
    low, high, b = 0.01, 100.0, 1.0
    own = logits[np.arange(len(logits)), labels]
    if (logits.argmax(1) == labels).all():
        return 1 / high
    if float((logits.mean(1, dtype=np.float64) - own).sum()) >= 0:  # the slope at b = 0
        return 1 / low
    for _ in range(_MOST_STEPS):
        slope, curvature = _slope(logits, labels, b)
        low, high = (low, b) if slope > 0 else (b, high)
        proposed = b - slope / curvature if curvature > 0 else low
        following = proposed if low < proposed < high else math.sqrt(low * high)
        if abs(following - b) <= 1e-6 * b:
            break
        b = following
    return 1 / b


def _slope(logits: Floats, labels: Ints, b: float) -> tuple[float, float]:
    """Return the two derivatives of the cross-entropy by b: E[z] - z_label, and Var[z], with softmax(b z)."""
    slope = curvature = 0.0
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        rows = logits[start : start + _ROWS_AT_ONCE].astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        weights = np.exp(b * rows)
        weights /= weights.sum(1, keepdims=True)
        mean = (weights * rows).sum(1)
        slope += float((mean - rows[np.arange(len(rows)), labels[start : start + _ROWS_AT_ONCE]]).sum())
        curvature += float(((weights * rows**2).sum(1) - mean**2).sum())
    return slope, curvature
