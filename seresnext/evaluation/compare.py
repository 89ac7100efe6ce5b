"""Comparison of two models on the same images: is the difference larger than chance?"""

from collections import Counter
from typing import Any

import numpy as np

from seresnext.errors import DataError, printable
from seresnext.evaluation.statistics import Ints
from seresnext.evaluation.table import Table
from seresnext.process.packages import extra

_RESAMPLES = 10_000
_SEED = 0


def compare(first: Table, second: Table, names: tuple[str, str]) -> dict[str, Any]:
    """Return the comparison of two tables of the same images, in any order, as in the JSON file.

    - `accuracies`: of both, in percent; `difference`: the second minus the first, in percentage points
    - `gained`, `lost`: images that only the second or only the first model has right
    - `p_value`: of McNemar's exact test; `interval`: the 95 % interval of the difference, by a paired bootstrap
    - `classes`: name, difference of the recall in percentage points and images, the largest differences first
    - `changes`: the images that one model has right: name, true class and both first predictions
    - `conclusion`: one line in plain words

    Raise DataError unless both tables have the same images with the same true classes. `names` are for the message.
    """
    best = first["prediction_1"], _aligned_predictions(first, second, names)
    right = [np.array(each, object) == np.array(first["label"], object) for each in best]
    accuracies = (100 * float(right[0].mean()), 100 * float(right[1].mean()))
    change = right[1].astype(np.int64) - right[0]  # 1, 0 or -1 for each image
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    difference, p_value = accuracies[1] - accuracies[0], mcnemar(gained, lost)
    keys, rows = ("image", "label", "first", "second"), zip(first["image"], first["label"], *best, strict=True)
    changes = [dict(zip(keys, row, strict=True)) for row, changed in zip(rows, change, strict=True) if changed]
    return {
        "num_images": len(first["image"]),
        "accuracies": accuracies,
        "gained": gained,
        "lost": lost,
        "p_value": p_value,
        "interval": _bootstrap(change),
        "classes": _class_differences(first["label"], change),
        "changes": changes,
        "difference": difference,
        "conclusion": _conclusion(difference, gained, lost, p_value),
    }


def _conclusion(difference: float, gained: int, lost: int, p_value: float) -> str:
    """Return one line in plain words. The difference counts if McNemar's test has p < 0.05."""
    if not gained + lost:
        return "Both models are right on the same images."
    counts = f"{gained} images gained, {lost} lost, p = {p_value:.2g}"
    if p_value >= 0.05:
        return f"The data do not show which model is better: the difference may be chance ({counts})."
    better, other = ("second", "first") if difference > 0 else ("first", "second")
    return f"The {better} model is better than the {other} by {abs(difference):.2f} points ({counts})."


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


def _aligned_predictions(first: Table, second: Table, names: tuple[str, str]) -> list[str]:
    """Return the first prediction of the second table for each image of the first."""
    for table, name in ((first, names[0]), (second, names[1])):
        [(image, count)] = Counter(table["image"]).most_common(1) or [("", 0)]
        if count != 1:
            problem = f"names {printable(image)} {count} times" if count else "has no images"
            raise DataError(f"{name} {problem}; write the table again with `seresnext validate --table`")
    known = [dict(zip(table["image"], table["label"], strict=True)) for table in (first, second)]
    different = [image for image in known[0] | known[1] if known[0].get(image) != known[1].get(image)]
    if different:
        image = different[0]
        classes = [f"of class {printable(labels[image])}" if image in labels else "missing" for labels in known]
        raise DataError(
            f"{printable(image)} is {classes[0]} in {names[0]} and {classes[1]} in {names[1]} (images that differ: "
            f"{len(different):,}); compare tables of one split with the same classes"
        )
    predictions = dict(zip(second["image"], second["prediction_1"], strict=True))
    return [predictions[image] for image in first["image"]]


def _class_differences(labels: object, differences: Ints) -> list[tuple[str, float, int]]:
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(numbers)
    means = 100 * np.bincount(numbers, weights=differences) / counts
    order = np.argsort(-np.abs(means), kind="stable")
    return [(str(classes[k]), float(means[k]), int(counts[k])) for k in order if means[k]]
