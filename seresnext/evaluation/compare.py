"""Comparison of two models on the same images: is the difference larger than chance?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from seresnext.errors import DataError
from seresnext.evaluation.statistics import Ints
from seresnext.evaluation.table import PredictionTable
from seresnext.printable import printable
from seresnext.process.packages import extra

_RESAMPLES = 10_000
_SEED = 0
_LISTED = 3


@dataclass(frozen=True)
class Change:
    """An image on which exactly one of two models is right: the name, the true class, both first predictions."""

    image: str
    label: str
    first: str
    second: str


@dataclass(frozen=True)
class Comparison:
    """The results of two tables of the same images.

    accuracies: of both, in percent. gained, lost: images that only the second or only the first model has right.
    p_value: of McNemar's exact test. interval: the 95 % interval of the difference in percentage points, by a paired
    bootstrap. classes: name, difference of the recall in percentage points and images, the largest differences first.
    """

    num_images: int
    accuracies: tuple[float, float]
    gained: int
    lost: int
    p_value: float
    interval: tuple[float, float]
    classes: list[tuple[str, float, int]]
    changes: list[Change]

    @property
    def difference(self) -> float:
        """The second accuracy minus the first, in percentage points."""
        return self.accuracies[1] - self.accuracies[0]

    @property
    def conclusion(self) -> str:
        """One line in plain words. The difference counts if McNemar's test has p < 0.05."""
        if not self.gained + self.lost:
            return "Both models are right on the same images."
        counts = f"{self.gained} images gained, {self.lost} lost, p = {self.p_value:.2g}"
        if self.p_value >= 0.05:
            return f"The data do not show which model is better: the difference may be chance ({counts})."
        better, other = ("second", "first") if self.difference > 0 else ("first", "second")
        return f"The {better} model is better than the {other} by {abs(self.difference):.2f} points ({counts})."


def compare(first: PredictionTable, second: PredictionTable, names: tuple[str, str]) -> Comparison:
    """Return the comparison of two tables. The order of the images may differ.

    Raise DataError unless both tables have the same images with the same true classes. `names` are for the message.
    """
    places = _places_in(first, second, names)
    right_first, right_second = first.correct, second.correct[places]
    gained, lost = int((right_second & ~right_first).sum()), int((right_first & ~right_second).sum())
    changes = [
        Change(first.images[n], first.labels[n], first.predictions[n][0], second.predictions[places[n]][0])
        for n in np.flatnonzero(right_first != right_second).tolist()
    ]
    return Comparison(
        len(first.images),
        (100 * float(right_first.mean()), 100 * float(right_second.mean())),
        gained,
        lost,
        mcnemar(gained, lost),
        _bootstrap(right_second.astype(np.int64) - right_first),
        _class_differences(first.labels, right_second.astype(np.int64) - right_first),
        changes,
    )


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: the binomial test of gained and lost at one half."""
    with extra("report"):
        from scipy.stats import binomtest
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _bootstrap(differences: Ints) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean difference (values -1, 0, 1), in percentage points.

    A resample of n values has multinomial counts of the three values, so no resample of the images is made.
    """
    n = len(differences)
    shares = np.array([(differences == value).mean() for value in (-1, 0, 1)])
    counts = np.random.default_rng(_SEED).multinomial(n, shares, size=_RESAMPLES)
    low, high = np.percentile(100 * (counts[:, 2] - counts[:, 0]) / n, [2.5, 97.5])
    return float(low), float(high)


def _places_in(first: PredictionTable, second: PredictionTable, names: tuple[str, str]) -> list[int]:
    """Return the row of the second table for each row of the first."""
    rows = {image: row for row, image in enumerate(second.images)}
    for table, name in ((first, names[0]), (second, names[1])):
        repeated = [image for image, count in Counter(table.images).items() if count > 1]
        if repeated or not table.images:
            problem = f"names {printable(repeated[0])} more than once" if repeated else "has no images"
            raise DataError(f"{name} {problem}; write the table again with `seresnext validate --table`")
    missing = [image for image in first.images if image not in rows]
    if missing or len(rows) != len(first.images):
        only_second = len(rows) - (len(first.images) - len(missing))
        listing = f", such as {', '.join(map(printable, missing[:_LISTED]))}" if missing else ""
        raise DataError(
            f"{names[0]} and {names[1]} have different images ({len(missing)} only in the first{listing}; "
            f"{only_second} only in the second); compare tables of one split"
        )
    places = [rows[image] for image in first.images]
    for image, label, place in zip(first.images, first.labels, places, strict=True):
        if second.labels[place] != label:
            raise DataError(
                f"{printable(image)} is of class {printable(label)} in {names[0]} and of class "
                f"{printable(second.labels[place])} in {names[1]}; compare tables with the same classes"
            )
    return places


def _class_differences(labels: object, differences: Ints) -> list[tuple[str, float, int]]:
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(numbers)
    means = 100 * np.bincount(numbers, weights=differences) / counts
    order = np.argsort(-np.abs(means), kind="stable")
    return [(str(classes[k]), float(means[k]), int(counts[k])) for k in order if means[k]]
