"""Statistics of predictions, against scipy, scikit-learn and torch."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_recall_fscore_support

from seresnext.evaluation.statistics import (
    calibrate,
    calibration_bins,
    calibration_error,
    class_results,
    confidences,
    confusion_matrix,
    describe_classes,
    fit_temperature,
    wilson_interval,
)


def _random(n=400, k=7, scale=2.0):
    """Return logits whose label is drawn from softmax(logits / scale): `scale` is the right temperature."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(n, k)) * 3
    weights = np.exp(logits / scale)
    weights /= weights.sum(1, keepdims=True)
    labels = np.array([rng.choice(k, p=row) for row in weights])
    return logits.astype(np.float32), labels


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (1, 1), (5, 9), (0, 50), (49_000, 50_000)])
def test_the_interval_is_scipys(correct, count):
    interval = binomtest(correct, count).proportion_ci(method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((100 * interval.low, 100 * interval.high), abs=1e-9)


def counts_of(confusion):
    """Return correct images, labels and predictions of each class, as in an `Evaluation`."""
    return np.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


def test_results_of_classes_are_those_of_scikit_learn():
    logits, labels = _random()
    labels[labels == 6] = 0  # A class without images, with predictions.
    logits[:, 5] = -9  # A class without predictions, with images.
    predictions = logits.argmax(1)
    confusion = confusion_matrix(labels, predictions, 7)
    assert (confusion == sklearn_confusion(labels, predictions, labels=range(7))).all()
    expected = precision_recall_fscore_support(labels, predictions, labels=range(7), zero_division=0)
    counts = counts_of(confusion)
    for mine, theirs in zip(class_results(counts), expected, strict=False):
        assert mine == pytest.approx(100 * theirs)
    assert (counts[1] == expected[3]).all()
    rows = describe_classes(counts, [f"class {number}" for number in range(7)])
    assert [row["support"] for row in rows] == expected[3].tolist()
    assert [row["f1"] for row in rows] == pytest.approx((100 * expected[2]).tolist())


def test_the_temperature_minimises_the_loss_of_torch():
    logits, labels = _random(20_000)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(2.0, rel=0.05)

    def loss(t):
        return torch.nn.functional.cross_entropy(torch.tensor(logits).double() / t, torch.tensor(labels)).item()

    assert loss(temperature) < min(loss(temperature * 1.001), loss(temperature / 1.001))


@pytest.mark.parametrize("wrong", [False, True])
def test_without_a_minimum_the_temperature_is_a_bound(wrong):
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    labels = np.array([0, 1, 2, 0])
    assert fit_temperature(logits, (labels + wrong) % 3) == pytest.approx(100 if wrong else 0.01, rel=0.01)


def test_the_calibration_error_of_known_bins():
    """Two bins: confidence 0.95 with half of 4 right, and 0.5 with all of 4 right; the mean distance is 47.5 %."""
    confidence = np.array([0.95] * 4 + [0.5] * 4)
    correct = np.array([1, 1, 0, 0, 1, 1, 1, 1], dtype=bool)
    bins = calibration_bins(confidence, correct)
    assert bins == [[50, 100, 4], [pytest.approx(95), 50, 4]]
    assert calibration_error(bins) == pytest.approx(47.5)


@pytest.mark.parametrize(("confidence", "bins"), [(1 / 15, 1), (1.0, 1), (0.0, 1)])
def test_the_edge_of_a_bin_belongs_to_the_lower_bin(confidence, bins):
    found = calibration_bins(np.array([confidence, max(confidence - 0.01, 0)]), np.array([True, False]))
    assert len(found) == bins


def test_the_temperature_repairs_confidence_that_is_too_high_and_no_other():
    logits, labels = _random(8000, scale=3.0)
    found, calibrated = calibrate(logits, labels), calibrate(*_random(8000, scale=1.0))
    assert (found["temperature"], calibrated["temperature"]) == pytest.approx((3, 1), rel=0.1)
    assert found["error"] > 10
    assert found["error_after"] < found["error"] / 5
    assert calibrated["error_after"] == pytest.approx(calibrated["error"], abs=1)
    bins = calibration_bins(confidences(logits), logits.argmax(1) == labels)
    assert found["error"] == pytest.approx(calibration_error(bins))


def test_the_halves_are_independent():
    """Labels of one half are noise: a temperature of that half makes the other half uncertain, not itself."""
    logits, labels = _random(2000, scale=1.0)
    half = np.empty(2000, dtype=int)
    for k in range(7):
        own = np.flatnonzero(labels == k)
        half[own] = np.arange(len(own)) % 2
    changed = logits.copy()
    changed[half == 1] = -changed[half == 1]
    found = calibrate(changed, labels)
    assert found["error_after"] > found["error"] / 2


@pytest.mark.parametrize("case", ["not finite", "one image"])
def test_no_calibration_without_numbers(case):
    logits, labels = _random(10)
    logits[3, 2] = np.nan
    assert (calibrate(logits, labels) if case == "not finite" else calibrate(logits[:1], labels[:1])) is None


def test_confidences_are_torchs_also_in_several_parts():
    logits, _ = _random(5000)
    expected = (torch.tensor(logits).double() / 1.7).softmax(1).max(1).values.numpy()
    assert confidences(logits, 1.7) == pytest.approx(expected, abs=1e-12)
