"""Suspected labels, values far out, and classes that look like one, with planted answers."""

from __future__ import annotations

import numpy as np
import pytest

from seresnext.doctor.labels import classes_like_one, far_out, suspected_labels


def opinions(labels: np.ndarray, num_classes: int, confidence: float = 0.8) -> np.ndarray:
    """Return probabilities N K with about `confidence` for the labels."""
    rng = np.random.default_rng(0)
    found = rng.dirichlet(np.ones(num_classes), len(labels)) * (1 - confidence)
    found[np.arange(len(labels)), labels] += confidence
    return found.astype(np.float32)


def test_planted_wrong_labels_are_suspected() -> None:
    true = np.arange(300) % 3
    labels = true.copy()
    wrong = [7, 50, 200]
    labels[wrong] = (true[wrong] + 1) % 3
    probabilities = opinions(true, 3)
    probabilities[wrong] = np.eye(3)[true[wrong]] * 0.94 + 0.02
    assert sorted(suspected_labels(labels, probabilities, 2).tolist()) == wrong
    assert len(suspected_labels(true, probabilities, 2)) == 0
    probabilities[50] = np.eye(3)[true[50]]
    assert suspected_labels(labels, probabilities, 2)[0] == 50  # The least probable label is first.


def test_small_and_missing_classes() -> None:
    """Class 1 has no image, and class 3 fewer than a network can learn from: no image of class 3 is suspected."""
    labels = np.array([0] * 30 + [2] * 30 + [3] * 2)
    seen = labels.copy()
    seen[[0, 60, 61]] = 2
    probabilities = opinions(seen, 4)
    assert suspected_labels(labels, probabilities, 3).tolist() == [0]
    assert set(suspected_labels(labels, probabilities, 2).tolist()) >= {0}
    assert suspected_labels(np.zeros(5, int), opinions(np.zeros(5, int), 2), 2).tolist() == []


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_far_out_values_do_not_depend_on_the_unit(scale: float) -> None:
    values = np.exp(np.random.default_rng(0).normal(0, 0.2, 1000))
    values[[3, 5]] = 40, 90
    values[8] = 0.001
    assert far_out(values * scale).tolist() == [5, 3]
    assert far_out(values * scale, high=False).tolist() == [8]


def test_nothing_is_far_out_among_equal_values() -> None:
    assert far_out(np.r_[np.ones(50), 1.9]).tolist() == []
    assert far_out(np.r_[np.ones(50), 2.1]).tolist() == [50]
    assert far_out(np.empty(0)).tolist() == []


def test_classes_that_cannot_be_told_apart() -> None:
    labels = np.repeat(np.arange(4), 100)
    seen = labels.copy()
    seen[:200] = np.tile([0, 1], 100)  # Classes 0 and 1 are a coin.
    seen[210:240] = 3  # 30 of 100 images of class 2, none of class 3.
    [(first, second, mixed)] = classes_like_one(labels, opinions(seen, 4))
    assert (first, second, mixed) == (0, 1, pytest.approx(0.5))
    assert classes_like_one(labels, opinions(labels, 4)) == []
