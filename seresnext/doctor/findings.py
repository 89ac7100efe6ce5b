"""The findings of the doctor: kinds of images with the rules, and the images that the exclusion list names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from seresnext.doctor.images import Collection, Looks
from seresnext.doctor.labels import far_out, suspected_labels

_DARK, _BRIGHT, _EMPTY = 82, 242, 16  # gray levels
_SMALL = 4  # times smaller than the median


class Row(NamedTuple):
    """An image of a finding. `other` is an image that is alike, `suggestion` a class. `listed`: for the list."""

    image: int
    detail: str = ""
    other: int | None = None
    suggestion: str = ""
    listed: bool = False


@dataclass(frozen=True)
class Finding:
    """Images of one kind. `key` names the kind in the files. `rule` explains the kind, and what the list takes.

    `left_out` are files that the reader left out, as text.
    """

    key: str
    title: str
    rule: str
    rows: list[Row] = field(default_factory=list)
    left_out: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows) + len(self.left_out)


def find_in_files(images: Collection, looks: Looks) -> Iterator[Finding]:
    """Yield the findings about single files: unreadable, odd, small, empty, dark, bright and blurred images."""
    bad = [Row(index, error, listed=True) for index, error in enumerate(looks.error) if error]
    rule = "The decoder refuses the file. The list has the files that the reader does not leave out by itself."
    yield Finding("unreadable", "Unreadable files", rule, bad, images.left_out)
    rule = "Turned by EXIF, transparent, CMYK, sides longer than 3 to 1, or above 50 million pixels."
    odd = [Row(index, ", ".join(kinds)) for index, kinds in enumerate(looks.kinds) if kinds]
    yield Finding("odd", "Odd files", rule, odd)
    good, side = good_images(looks), looks.size.min(1)
    median = float(np.median(side[good])) if len(good) else 0.0
    rule = f"The shorter side is under a quarter of the median, {median:g} pixels."
    small = good[side[good] * _SMALL < median].tolist()
    yield Finding("small", "Small images", rule, [Row(index, f"{side[index]} pixels") for index in small])
    low, lower, high = looks.light[good].T
    is_empty = high - low < _EMPTY
    for key, flags, rule in (
        ("empty", is_empty, f"98 % of the pixels lie within {_EMPTY} of 256 gray levels."),
        ("dark", ~is_empty & (high < _DARK), f"99 % of the pixels are below gray level {_DARK} of 255."),
        ("bright", ~is_empty & (lower > _BRIGHT), f"95 % of the pixels are above gray level {_BRIGHT} of 255."),
    ):
        rows = [Row(index, "gray levels {:.0f} to {:.0f}".format(*looks.light[index, ::2])) for index in good[flags]]
        yield Finding(key, f"{key.title()} images", rule, rows)
    clear = good[~is_empty]
    rule = (
        "The variance of the Laplacian over the variance of the gray levels, at 256 pixels, is far below that of the "
        "other images: 3 interquartile ranges under the lower quartile, of the logarithm."
    )
    blurred = clear[far_out(looks.sharpness[clear], high=False)].tolist()
    yield Finding("blurred", "Blurred images", rule, [Row(n, f"sharpness {looks.sharpness[n]:.2g}") for n in blurred])


def good_images(looks: Looks) -> np.ndarray:
    """Return the indices of the images that can be decoded (int N)."""
    return np.array([index for index, error in enumerate(looks.error) if not error], np.int64)


def equal_files(images: Collection, looks: Looks) -> list[list[int]]:
    """Return the groups of images with equal files. The first one is kept, so images of training come last."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index in sorted(good_images(looks).tolist(), key=lambda index: (-images.splits[index], index)):
        groups[looks.digest[index]].append(index)
    return [group for group in groups.values() if len(group) > 1]


def find_copies(images: Collection, groups: Iterable[list[int]], pairs: np.ndarray) -> Iterator[Finding]:
    """Yield the findings about copies: groups of equal files, and pairs of near duplicates (int P 2).

    The first split is that of training. Copies in other splits stay, so that accuracies can be compared.
    """
    labels, splits, found = images.labels, images.splits, defaultdict[str, dict[int, Row]](dict)

    def add(image: int, other: int, text: str, listed: bool) -> None:
        clashes, leaks = labels[image] != labels[other], splits[image] != splits[other]
        key = "contradiction" if clashes else "leak" if leaks else "copy" if text == "equal file" else "near"
        text = f"{text} of {images.classes[labels[other]]}" if clashes else text
        found[key].setdefault(image, Row(image, text, other, listed=listed))

    for first, *others in groups:
        for other in others:
            add(other, first, "equal file", True)
        if clash := [other for other in others if labels[other] != labels[first]]:
            add(first, clash[0], "equal file", True)
    for pair in pairs.tolist():
        image, other = sorted(pair, key=lambda index: (splits[index], index))
        clashes, leaks = labels[image] != labels[other], splits[image] != splits[other]
        if clashes or leaks:
            add(image, other, "near duplicate", True)
        if not leaks:
            add(other, image, "near duplicate", bool(clashes))
    for key, title, rule in (
        ("contradiction", "Copies with different labels", "A label is wrong. If the splits differ, the list has the "
         "copy in training, else both."),
        ("leak", "Copies in two splits", "The accuracy counts images of training. The list has the copy in training."),
        ("copy", "Equal files", "Equal files of one class and one split. The list has all but one."),
        ("near", "Near duplicates", "At most 12 of the 64 bits of the perceptual hashes differ, and thumbnails of 16 x "
         "16 pixels have a correlation of 0.9 or more. The list has none: a burst of photographs is no error."),
    ):  # fmt: skip
        yield Finding(key, title, rule, [found[key][index] for index in sorted(found[key])])


def find_by_network(
    images: Collection, probabilities: np.ndarray, distances: np.ndarray, good: np.ndarray, knows: bool, fewest: int
) -> Iterator[Finding]:
    """Yield suspected labels and outliers. The `good` images have a row in the probabilities and distances each.

    knows: the network was trained on the images of training. fewest: as in `suspected_labels`.
    """
    labels, rows = images.labels[good], []
    for place in suspected_labels(labels, probabilities, fewest).tolist():
        own, best = int(labels[place]), int(probabilities[place].argmax())
        percent, name = 100 * probabilities[place], images.classes[best]
        detail = f"{percent[best]:.0f} %, label {percent[own]:.0f} %"
        listed = bool(images.splits[good[place]] == 0) and not knows
        rows.append(Row(int(good[place]), detail, None, name, listed))
    rule = (
        "Confident learning (Northcutt et al. 2021, cleanlab). The list has the images of training. Images of other "
        "splits stay: to leave out what a network gets wrong raises the accuracy on paper only."
    )
    rule += " The network was trained on the images of training, so the list has none of them." * knows
    yield Finding("label", "Suspected wrong labels", rule, rows)
    rule = (
        "The mean cosine distance of the features to the 10 nearest images is far above that of the other images: 3 "
        "interquartile ranges over the upper quartile, of the logarithm."
    )
    far = [Row(int(good[place]), f"{distances[place]:.1f} times the median") for place in far_out(distances)]
    yield Finding("outlier", "Outliers", rule, far)


def exclusions(findings: Iterable[Finding]) -> dict[int, tuple[str, Row]]:
    """Return the images of the exclusion list in order, each with the key of the first finding that has the image."""
    found: dict[int, tuple[str, Row]] = {}
    for finding in findings:
        for row in finding.rows:
            if row.listed:
                found.setdefault(row.image, (finding.key, row))
    return dict(sorted(found.items()))
