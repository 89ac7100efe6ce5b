"""The comparison of two tables, against scipy."""

import json

import numpy as np
import pytest
from conftest import command
from scipy.stats import bootstrap

from seresnext.errors import DataError
from seresnext.evaluation.compare import compare, mcnemar
from seresnext.evaluation.table import build_table, write_table

CLASSES = ["a", "b", "c"]


def table_of(right, names=None, labels=None):
    """Return a table of images, of which those marked are right."""
    labels = np.arange(len(right)) % 3 if labels is None else labels
    logits = 5.0 * np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
    return build_table(names or [f"{n}.png" for n in range(len(right))], labels, logits, CLASSES)


def pair(n=600, first=0.7, second=0.8):
    rng = np.random.default_rng(1)
    return rng.random(n) < first, rng.random(n) < second


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (5, 0, 2 * 0.5**5), (3, 3, 1.0), (1, 2, 1.0)])
def test_mcnemar_of_small_counts(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    first, second = pair()
    found = compare(table_of(first), table_of(second), ("A", "B"))
    expected = bootstrap(
        (second, first), lambda b, a, axis: 100 * (b.mean(axis) - a.mean(axis)), paired=True, method="percentile", rng=0
    ).confidence_interval
    assert found["interval"] == pytest.approx((expected.low, expected.high), abs=0.5)
    assert found["difference"] == pytest.approx(100 * (second.mean() - first.mean()))
    assert found["interval"][0] < found["difference"] < found["interval"][1]


def test_a_real_difference_is_found_and_chance_is_called_chance():
    far, close = ([table_of(right) for right in pair(second=share)] for share in (0.8, 0.71))
    conclusions = {
        "The second model is better": far,
        "The first model is better": far[::-1],
        "may be chance": close,
        "Both models are right on the same images.": [far[0], far[0]],
    }
    for words, tables in conclusions.items():
        found = compare(*tables, ("A", "B"))
        assert words in found["conclusion"]
        assert (found["p_value"] < 0.05) == ("is better" in words)
        assert (found["interval"][0] <= 0 <= found["interval"][1]) == ("is better" not in words)


def test_the_order_of_the_images_does_not_count():
    first, second = pair(50)
    order = np.random.default_rng(0).permutation(50)
    shuffled = table_of(second[order], [f"{n}.png" for n in order], order % 3)
    straight = compare(table_of(first), table_of(second), ("A", "B"))
    assert compare(table_of(first), shuffled, ("A", "B")) == straight
    assert {change["image"] for change in straight["changes"]} == {f"{n}.png" for n in np.flatnonzero(first != second)}
    assert straight["gained"] + straight["lost"] == len(straight["changes"])


def test_classes_with_the_largest_change_come_first():
    first, second = np.zeros(9, bool), np.zeros(9, bool)
    second[[0, 3, 6, 1]] = True
    assert compare(table_of(first), table_of(second), ("A", "B"))["classes"] == [
        ("a", 100, 3),
        ("b", pytest.approx(100 / 3), 3),
    ]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (table_of(np.ones(4, bool)), r"4\.png is of class b in A and missing in B \(images that differ: 1\)"),
        (table_of(np.ones(6, bool)), r"5\.png is missing in A and of class c in B \(images that differ: 1\)"),
        (table_of(np.ones(5, bool), ["0.png", "0.png", "2.png", "3.png", "4.png"]), r"B names 0\.png 2 times"),
        (
            table_of(np.ones(5, bool), labels=np.zeros(5, int)),
            r"1\.png is of class b in A and of class a in B \(images that differ: 3\)",
        ),
    ],
)
def test_tables_of_other_images_are_refused(other, words):
    with pytest.raises(DataError, match=words):
        compare(table_of(np.ones(5, bool)), other, ("A", "B"))


def test_the_command(tmp_path, capsys):
    for name, right in zip("AB", pair(60), strict=True):
        write_table(table_of(right), tmp_path / f"{name}.csv")
    words = ["compare", tmp_path / "A.csv", tmp_path / "B.csv", "--json", tmp_path / "out.json"]
    assert command(*words) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert printed.splitlines()[-1] == report["conclusion"]
    assert f"{report['difference']:+.3f} percentage points" in printed
    assert len(report["changes"]) == report["gained"] + report["lost"]
    assert command(*words[:2], tmp_path / "none.csv") == 3
    assert command(*words[:2], tmp_path / "A.txt") == 2
