"""The findings about files and copies, and the choice of the images of the list."""

import numpy as np
import pytest

from seresnext.doctor.findings import (
    Finding,
    classes_like_one,
    exclusions,
    far_out,
    find_by_network,
    find_copies,
    suspected_labels,
)
from seresnext.doctor.images import Collection, equal_pairs


class FewImages(Collection):
    """Images of two classes and three splits without files."""

    classes, split_names = ("a", "b"), ("train", "val", "test")

    def __init__(self, labels, splits):
        self.labels = np.array(["ab".index(each) for each in labels])
        self.splits = np.array([int(each) for each in splits])

    def name(self, index):
        return f"{index:02}"


@pytest.mark.parametrize(
    ("labels", "splits", "expected"),
    [
        ("aa", "00", {1: "copy"}),  # All but one of equal files.
        ("aaa", "000", {1: "copy", 2: "copy"}),
        ("aa", "01", {0: "leak"}),  # The copy in validation stays.
        ("aaa", "012", {0: "leak", 1: "leak"}),
        ("aa", "11", {1: "copy"}),
        ("ab", "00", {0: "contradiction", 1: "contradiction"}),
        ("aab", "000", {0: "contradiction", 1: "copy", 2: "contradiction"}),
        ("ab", "01", {0: "contradiction"}),
    ],
)
def test_the_list_of_equal_files(labels, splits, expected):
    images = FewImages(labels, splits)
    equal = equal_pairs(np.array(["x"] * len(labels)), images.splits)
    listed = exclusions(find_copies(images, equal, np.empty((0, 2), int)))
    assert {row["indices"][0]: row["reason"] for row in listed} == expected


@pytest.mark.parametrize(
    ("labels", "splits", "keys", "listed"),
    [
        ("aa", "00", {1: "near"}, []),
        ("aa", "01", {0: "leak"}, [0]),
        ("aa", "10", {1: "leak"}, [1]),
        ("ab", "00", {0: "contradiction", 1: "contradiction"}, [0, 1]),
        ("ab", "10", {1: "contradiction"}, [1]),
    ],
)
def test_the_list_of_near_duplicates(labels, splits, keys, listed):
    findings = list(find_copies(FewImages(labels, splits), np.empty((0, 2), int), np.array([[0, 1]])))
    assert {row["indices"][0]: each.key for each in findings for row in each.rows} == keys
    assert [row["indices"][0] for row in exclusions(findings)] == listed


def test_labels_of_validation_likely_labels_and_labels_that_a_network_knows_are_not_listed():
    images = FewImages("a" * 30 + "b" * 30, "0" * 15 + "1" * 15 + "0" * 30)
    probabilities = np.eye(2, dtype=np.float32)[images.labels] * 0.4 + 0.3
    probabilities[[3, 20]] = 0.05, 0.95
    probabilities[5] = 0.2, 0.8
    distances = np.ones(60)
    distances[7] = 9
    for knows, listed in ((False, [3]), (True, [])):
        labels, outliers = find_by_network(images, probabilities, distances, knows, 2)
        assert sorted(row["path"] for row in labels.rows) == ["03", "05", "20"]
        assert {row["suggestion"] for row in labels.rows} == {"b"}
        assert [row["indices"][0] for row in exclusions([labels, outliers])] == listed
        assert [(row["path"], row["detail"]) for row in outliers.rows] == [("07", "9.0 times the median")]


def test_the_first_finding_gives_the_reason():
    images = FewImages("aaa", "000")
    listed, other = images.row(2, "", listed=True), images.row(1, "")
    findings = [Finding("x", "", "", [other]), Finding("y", "", "", [listed]), Finding("z", "", "", [listed, other])]
    assert [(row["path"], row["reason"]) for row in exclusions(findings)] == [("02", "y")]


def opinions(labels, num_classes, confidence=0.8):
    """Return probabilities N K with about `confidence` for the labels."""
    rng = np.random.default_rng(0)
    found = rng.dirichlet(np.ones(num_classes), len(labels)) * (1 - confidence)
    found[np.arange(len(labels)), labels] += confidence
    return found.astype(np.float32)


def test_planted_wrong_labels_are_suspected():
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


def test_small_and_missing_classes():
    """Class 1 has no image, and class 3 fewer than a network can learn from: no image of class 3 is suspected."""
    labels = np.array([0] * 30 + [2] * 30 + [3] * 2)
    seen = labels.copy()
    seen[[0, 60, 61]] = 2
    probabilities = opinions(seen, 4)
    assert suspected_labels(labels, probabilities, 3).tolist() == [0]
    assert set(suspected_labels(labels, probabilities, 2).tolist()) >= {0}
    assert suspected_labels(np.zeros(5, int), opinions(np.zeros(5, int), 2), 2).tolist() == []


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_far_out_values_do_not_depend_on_the_unit(scale):
    values = np.exp(np.random.default_rng(0).normal(0, 0.2, 1000))
    values[[3, 5]] = 40, 90
    values[8] = 0.001
    assert far_out(values * scale).tolist() == [5, 3]
    assert far_out(values * scale, high=False).tolist() == [8]


def test_nothing_is_far_out_among_equal_values():
    assert far_out(np.r_[np.ones(50), 1.9]).tolist() == []
    assert far_out(np.r_[np.ones(50), 2.1]).tolist() == [50]
    assert far_out(np.empty(0)).tolist() == []


def test_classes_that_cannot_be_told_apart():
    labels = np.repeat(np.arange(4), 100)
    seen = labels.copy()
    seen[:200] = np.tile([0, 1], 100)  # Classes 0 and 1 are a coin.
    seen[210:240] = 3  # 30 of 100 images of class 2, none of class 3.
    [(first, second, mixed)] = classes_like_one(labels, opinions(seen, 4))
    assert (first, second, mixed) == (0, 1, pytest.approx(0.5))
    assert classes_like_one(labels, opinions(labels, 4)) == []
