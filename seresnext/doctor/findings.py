"""The findings of the doctor: the rules, the images of each kind, and the images that the exclusion list names."""

import csv
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from seresnext.doctor.images import EMPTY, Collection, is_empty
from seresnext.errors import as_utf8
from seresnext.evaluation.statistics import confusion_matrix
from seresnext.process.packages import extra

COLUMNS = ("path", "reason", "split", "label", "suggestion", "other", "detail")
"""The columns of the exclusion list. People decide by those after the reason."""
_DARK, _BRIGHT = 82, 242  # gray levels
_SMALL = 4  # times smaller than the median
_MIXED = 1 / 3  # the share from which two classes look like one; a coin has 1/2
_UNLIKELY = 0.2  # times chance: the probability of a label below which the list has the image
_FENCE = 3.0  # interquartile ranges beyond a quartile: "far out" in Tukey 1977, Exploratory Data Analysis, section 2D
_COPIES = {
    "contradiction": ("Copies with different labels", "A label is wrong. The list has both, or only that in training."),
    "leak": ("Copies in two splits", "The accuracy counts images of training. The list has the copy in training."),
    "copy": ("Equal files", "Equal files of one class and one split. The list has all but one."),
    "near": (
        "Near duplicates",
        "At most 12 of the 64 bits of the perceptual hashes differ, and thumbnails of 16 x 16 pixels have a "
        "correlation of 0.9 or more. The list has none: a burst of photographs is no error.",
    ),
}


class Finding(NamedTuple):
    """Images of one kind: `key` names the kind in files, `rule` explains the kind, `rows` are of `Collection.row`."""

    key: str
    title: str
    rule: str
    rows: list[dict[str, Any]]


def find_unreadable(images: Collection, errors: Mapping[int, str]) -> Finding:
    """Return the files that cannot be decoded: images with an error, by index, and files that the readers left out."""
    rows = [{**images.row(index, error, listed=True), "indices": ()} for index, error in errors.items()]
    nothing = dict.fromkeys(COLUMNS, "") | {"listed": False, "indices": ()}
    rows += [{**nothing, "detail": as_utf8(text)} for text in images.left_out]
    rule = "The decoder refuses the file. The list has the files that the reader does not leave out by itself."
    return Finding("unreadable", "Unreadable files", rule, rows)


def find_in_files(images: Collection, looks: np.ndarray) -> Iterator[Finding]:
    """Yield the findings about single images: odd, small, empty, dark, bright and blurred ones."""
    side, (low, lower, high) = looks["size"].min(1), looks["light"].T
    kinds, sharpness = looks["kinds"], looks["sharpness"]
    median = float(np.median(side)) if len(side) else 0.0
    clear = np.flatnonzero(~is_empty(looks))

    def levels(index: int) -> str:
        return f"gray levels {low[index]:.0f} to {high[index]:.0f}"

    rules: list[tuple[str, np.ndarray, str, Callable[[int], str]]] = [
        ("Odd files", np.flatnonzero(kinds), "Turned by EXIF, transparent, CMYK, longer than 3 to 1, or above 50 "
         "million pixels.", lambda index: kinds[index]),
        ("Small images", np.flatnonzero(side * _SMALL < median), "The shorter side is under a quarter of the median, "
         f"{median:g} pixels.", lambda index: f"{side[index]} pixels"),
        ("Empty images", np.flatnonzero(is_empty(looks)), f"98 % of the pixels lie within {EMPTY} of 256 gray levels.",
         levels),
        ("Dark images", clear[high[clear] < _DARK], f"99 % of the pixels are below gray level {_DARK} of 255.", levels),
        ("Bright images", clear[lower[clear] > _BRIGHT], f"95 % of the pixels are above gray level {_BRIGHT} of 255.",
         levels),
        ("Blurred images", clear[far_out(sharpness[clear], high=False)], "The variance of the Laplacian over the "
         "variance of the gray levels is far below that of the other images.",
         lambda index: f"sharpness {sharpness[index]:.2g}"),
    ]  # fmt: skip
    for title, found, rule, describe in rules:
        rows = [images.row(index, describe(index)) for index in found.tolist()]
        yield Finding(title.split()[0].lower(), title, rule, rows)


def find_copies(images: Collection, equal: np.ndarray, near: np.ndarray) -> Iterator[Finding]:
    """Yield the findings about copies: pairs of equal files, the one to keep first, and of near duplicates (int P 2).

    The first split is that of training. Copies in other splits stay, so that accuracies can be compared.
    """
    labels, splits = images.labels, images.splits
    found: dict[str, dict[int, Any]] = {key: {} for key in _COPIES}
    pairs = [(*pair, "equal file") for pair in equal.tolist()] + [(*pair, "near duplicate") for pair in near.tolist()]
    for one, two, text in pairs:
        clashes, leaks = labels[one] != labels[two], splits[one] != splits[two]
        key = "contradiction" if clashes else "leak" if leaks else "copy" if text == "equal file" else "near"
        ways = [(one, two)] if splits[one] < splits[two] else [(two, one)]
        ways += [(one, two)] * bool(clashes and not leaks)
        for image, other in ways:
            detail = f"{text} of {images.classes[labels[other]]}" if clashes else text
            found[key].setdefault(image, images.row(image, detail, other, listed=key != "near"))
    for key, (title, rule) in _COPIES.items():
        yield Finding(key, title, rule, [found[key][index] for index in sorted(found[key])])


def find_by_network(
    images: Collection, probabilities: np.ndarray, distances: np.ndarray, knows: bool, fewest: int
) -> Iterator[Finding]:
    """Yield suspected labels and outliers, by probabilities (N K) and distances (N).

    knows: the network was trained on the images of training. fewest: as in `suspected_labels`.
    """
    rows = []
    for index in suspected_labels(images.labels, probabilities, fewest).tolist():
        best, percent = int(probabilities[index].argmax()), 100 * probabilities[index]
        detail = f"{percent[best]:.0f} %, label {percent[images.labels[index]]:.0f} %"
        is_unlikely = probabilities[index, images.labels[index]] < _UNLIKELY / probabilities.shape[1]
        listed = bool(is_unlikely and images.splits[index] == 0) and not knows
        rows.append(images.row(index, detail, suggestion=images.classes[best], listed=listed))
    rule = (
        "Confident learning (Northcutt et al. 2021, cleanlab). The list has labels less likely than a fifth of chance, "
        "in training only: to leave out the mistakes of a network in validation raises the accuracy on paper."
    ) + " The network was trained on the images of training, so the list has none." * knows
    yield Finding("label", "Suspected wrong labels", rule, rows)
    rule = "The mean cosine distance of the features to the 10 nearest images is far above that of the other images."
    far = [images.row(index, f"{distances[index]:.1f} times the median") for index in far_out(distances).tolist()]
    yield Finding("outlier", "Outliers", rule, far)


def exclusions(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the rows of the exclusion list by path, each with the key of the first finding as the `reason`."""
    found: dict[str, dict[str, Any]] = {}
    for finding in findings:
        for row in finding.rows:
            if row["listed"]:
                found.setdefault(row["path"], {"reason": finding.key, **row})
    return [found[path] for path in sorted(found)]


def exclusion_list(listed: Iterable[dict[str, Any]]) -> str:
    """Return the exclusion list as CSV: `path` and `reason` of each image, and help for a decision."""
    text = io.StringIO()
    table: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(listed)
    return text.getvalue()


def suspected_labels(labels: np.ndarray, probabilities: np.ndarray, fewest: int) -> np.ndarray:
    """Return the indices of images with a label that is probably wrong, the least probable label first.

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
    pairs = [(one, other, float(mixed[one, other])) for one, other in np.argwhere(np.triu(mixed >= _MIXED, 1)).tolist()]
    return sorted(pairs, key=lambda pair: -pair[2])
