"""The findings of the doctor: kinds of images, the rules, and the images that the exclusion list names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seresnext.doctor.images import Collection, Looks
from seresnext.doctor.labels import far_out, suspected_labels

_DARK, _BRIGHT, _EMPTY = 82, 242, 16  # gray levels
_SMALL = 4  # times smaller than the median
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


@dataclass(frozen=True)
class Finding:
    """Images of one kind: `key` names the kind in the files, `rule` explains the kind.

    `rows` are of `Collection.row`. `left_out` are files that the reader left out, with the reasons.
    """

    key: str
    title: str
    rule: str
    rows: Sequence[dict[str, Any]]
    left_out: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows) + len(self.left_out)


def find_in_files(images: Collection, looks: Looks) -> Iterator[Finding]:
    """Yield the findings about single files: unreadable, odd, small, empty, dark, bright and blurred images."""
    bad = [images.row(index, error, listed=True) for index, error in enumerate(looks.error) if error]
    rule = "The decoder refuses the file. The list has the files that the reader does not leave out by itself."
    yield Finding("unreadable", "Unreadable files", rule, bad, images.left_out)
    good, side = looks.good(), looks.size.min(1)
    low, lower, high = looks.light.T
    is_odd, is_empty = np.array([bool(kinds) for kinds in looks.kinds]), high - low < _EMPTY
    median = float(np.median(side[good])) if len(good) else 0.0
    clear = good[~is_empty[good]]

    def levels(index: int) -> str:
        return f"gray levels {low[index]:.0f} to {high[index]:.0f}"

    rules: list[tuple[str, np.ndarray, str, Callable[[int], str]]] = [
        ("Odd files", good[is_odd[good]], "Turned by EXIF, transparent, CMYK, longer than 3 to 1, or above 50 million "
         "pixels.", lambda index: looks.kinds[index]),
        ("Small images", good[side[good] * _SMALL < median], "The shorter side is under a quarter of the median, "
         f"{median:g} pixels.", lambda index: f"{side[index]} pixels"),
        ("Empty images", good[is_empty[good]], f"98 % of the pixels lie within {_EMPTY} of 256 gray levels.", levels),
        ("Dark images", clear[high[clear] < _DARK], f"99 % of the pixels are below gray level {_DARK} of 255.", levels),
        ("Bright images", clear[lower[clear] > _BRIGHT], f"95 % of the pixels are above gray level {_BRIGHT} of 255.",
         levels),
        ("Blurred images", clear[far_out(looks.sharpness[clear], high=False)], "The variance of the Laplacian over the "
         "variance of the gray levels is far below that of the other images.",
         lambda index: f"sharpness {looks.sharpness[index]:.2g}"),
    ]  # fmt: skip
    for title, found, rule, describe in rules:
        rows = [images.row(index, describe(index)) for index in found.tolist()]
        yield Finding(title.split()[0].lower(), title, rule, rows)


def equal_files(images: Collection, looks: Looks) -> list[list[int]]:
    """Return the groups of images with equal files. The first one is kept, so images of training come last."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index in sorted(looks.good().tolist(), key=lambda index: (-images.splits[index], index)):
        groups[looks.digest[index]].append(index)
    return [group for group in groups.values() if len(group) > 1]


def find_copies(images: Collection, groups: Iterable[list[int]], pairs: np.ndarray) -> Iterator[Finding]:
    """Yield the findings about copies: groups of equal files, and pairs of near duplicates (int P 2).

    The first split is that of training. Copies in other splits stay, so that accuracies can be compared.
    """
    labels, splits, found = images.labels, images.splits, defaultdict[str, dict[int, Any]](dict)

    def add(image: int, other: int, text: str, listed: bool) -> None:
        clashes, leaks = labels[image] != labels[other], splits[image] != splits[other]
        key = "contradiction" if clashes else "leak" if leaks else "copy" if text == "equal file" else "near"
        text = f"{text} of {images.classes[labels[other]]}" if clashes else text
        found[key].setdefault(image, images.row(image, text, other, listed=listed))

    for first, *others in groups:
        for other in others:
            add(other, first, "equal file", True)
        if clash := [other for other in others if labels[other] != labels[first]]:
            add(first, clash[0], "equal file", True)
    for pair in pairs.tolist():
        image, other = sorted(pair, key=lambda index: (splits[index], index))
        clashes, leaks = bool(labels[image] != labels[other]), bool(splits[image] != splits[other])
        if clashes or leaks:
            add(image, other, "near duplicate", True)
        if not leaks:
            add(other, image, "near duplicate", clashes)
    for key, (title, rule) in _COPIES.items():
        yield Finding(key, title, rule, [found[key][index] for index in sorted(found[key])])


def find_by_network(
    images: Collection, probabilities: np.ndarray, distances: np.ndarray, good: np.ndarray, knows: bool, fewest: int
) -> Iterator[Finding]:
    """Yield suspected labels and outliers. The `good` images have a row in the probabilities and distances each.

    knows: the network was trained on the images of training. fewest: as in `suspected_labels`.
    """
    rows = []
    for place in suspected_labels(images.labels[good], probabilities, fewest).tolist():
        index, best = int(good[place]), int(probabilities[place].argmax())
        percent = 100 * probabilities[place]
        detail = f"{percent[best]:.0f} %, label {percent[images.labels[index]]:.0f} %"
        listed = bool(images.splits[index] == 0) and not knows
        rows.append(images.row(index, detail, suggestion=images.classes[best], listed=listed))
    rule = (
        "Confident learning (Northcutt et al. 2021, cleanlab). The list has images of training only: to leave out the "
        "mistakes of a network in validation raises the accuracy on paper."
    ) + " The network was trained on the images of training, so the list has none." * knows
    yield Finding("label", "Suspected wrong labels", rule, rows)
    rule = "The mean cosine distance of the features to the 10 nearest images is far above that of the other images."
    far = [images.row(int(good[n]), f"{distances[n]:.1f} times the median") for n in far_out(distances)]
    yield Finding("outlier", "Outliers", rule, far)


def exclusions(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the rows of the exclusion list by path, each with the key of the first finding as the `reason`."""
    found: dict[str, dict[str, Any]] = {}
    for finding in findings:
        for row in finding.rows:
            if row["listed"]:
                found.setdefault(row["path"], {"reason": finding.key, **row})
    return [found[path] for path in sorted(found)]
