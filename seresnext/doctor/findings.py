"""The findings of the doctor: kinds of images with the measures, and the images that the exclusion list names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seresnext.doctor.images import Collection, Looks
from seresnext.doctor.labels import far_out, suspected_labels
from seresnext.doctor.network import Opinions

_DARK, _BRIGHT, _EMPTY = 82.0, 242.0, 16.0  # gray levels
_SMALL = 4  # times smaller than the median


class Row(NamedTuple):
    """An image of a finding: number, fact, the image that is alike, a better class, and whether the list names it."""

    image: int
    detail: str = ""
    other: int | None = None
    suggestion: str = ""
    excluded: bool = False


@dataclass(frozen=True)
class Finding:
    """Images of one kind. `key` names the kind in the files. `measure` explains the rule, and what the list takes."""

    key: str
    title: str
    measure: str
    rows: Sequence[Row]


def find_in_files(images: Collection, looks: Looks) -> Iterator[Finding]:
    """Yield the findings about single files: unreadable, odd, small, dark, bright, empty and blurred images."""
    good, size = looks.good, looks.size[looks.good]
    bad = [
        Row(index, error.removeprefix(f"{images.name(index)} "), excluded=True)
        for index, error in enumerate(looks.error)
        if error
    ]
    yield Finding("unreadable", "Unreadable files", "The decoder refuses the file. The list has all of them.", bad)
    odd = [Row(index, ", ".join(kinds)) for index, kinds in enumerate(looks.kinds) if kinds]
    text = "Turned by EXIF, transparent, CMYK, longer than 3 to 1, or above 50 million pixels."
    yield Finding("odd", "Odd files", text, odd)
    median = np.median(size.min(1)) if len(size) else 0
    small = [Row(index, _pixels(looks, index)) for index in good[size.min(1) * _SMALL < median].tolist()]
    text = f"The shorter side is under a quarter of the median, {median:g} pixels: the image is enlarged most."
    yield Finding("small", "Small images", text, small)
    low, lower, high = looks.light[good].T
    is_empty = high - low < _EMPTY
    kinds = (
        ("empty", "Empty images", is_empty, "98 % of the pixels lie within 16 of 256 gray levels."),
        ("dark", "Dark images", ~is_empty & (high < _DARK), "99 % of the pixels are below gray level 82, a third."),
        ("bright", "Bright images", ~is_empty & (lower > _BRIGHT), "95 % of the pixels are above gray level 242."),
    )
    for key, title, flags, text in kinds:
        levels = [
            Row(index, f"gray levels {looks.light[index, 0]:.0f} to {looks.light[index, 2]:.0f}")
            for index in good[flags].tolist()
        ]
        yield Finding(key, title, text, levels)
    clear = good[~is_empty]
    blurred = clear[far_out(looks.sharpness[clear], high=False)].tolist()
    text = (
        "The variance of the Laplacian over the variance of the gray levels, at 256 pixels (Pech-Pacheco et al. 2000), "
        "is far below the other images: 3 interquartile ranges of the logarithm under the lower quartile (Tukey 1977)."
    )
    yield Finding("blurred", "Blurred images", text, [Row(n, f"sharpness {looks.sharpness[n]:.2g}") for n in blurred])


def find_copies(images: Collection, groups: Sequence[Sequence[int]], pairs: np.ndarray) -> Iterator[Finding]:
    """Yield the findings about copies: `groups` of equal files, and `pairs` of near duplicates (int P 2).

    The first file of a group is kept. The first split is that of training. Copies in the other splits are kept, so that
    an accuracy stays comparable.
    """
    labels, splits = images.labels, images.splits
    copies: dict[int, Row] = {}
    leaks: dict[int, Row] = {}
    clashes: dict[int, Row] = {}
    near: dict[int, Row] = {}
    for group in groups:
        kept = group[0]
        if len(set(labels[group])) > 1:
            for index in group:
                other = next(each for each in group if labels[each] != labels[index])
                clashes[index] = Row(index, f"equal file of {images.classes[labels[other]]}", other, excluded=True)
            continue
        for index in group:
            if index != kept:
                target = copies if splits[index] == splits[kept] else leaks
                target[index] = Row(index, "equal file", kept, excluded=True)
    for one, other in pairs.tolist():
        here, there = sorted((one, other), key=lambda index: (splits[index], index))
        is_leak = splits[here] != splits[there]
        if labels[here] != labels[there]:
            clashes.setdefault(
                here, Row(here, f"near duplicate of {images.classes[labels[there]]}", there, excluded=True)
            )
            clashes.setdefault(
                there, Row(there, f"near duplicate of {images.classes[labels[here]]}", here, excluded=not is_leak)
            )
        elif is_leak:
            leaks.setdefault(here, Row(here, "near duplicate", there, excluded=True))
        else:
            near.setdefault(there, Row(there, "near duplicate", here))
    rows = (
        ("contradiction", "Copies with different labels", _CLASH, clashes),
        ("leak", "Copies in two splits", _LEAK, leaks),
        ("copy", "Equal files", "The SHA-256 is equal, and so are class and split. The list has all but one.", copies),
        ("near", "Near duplicates", _NEAR, near),
    )
    for key, title, measure, found in rows:
        yield Finding(key, title, measure, [found[index] for index in sorted(found)])


_NEAR = (
    "At most 12 of the 64 bits of the perceptual hashes differ (imagehash), and thumbnails of 16 x 16 pixels have a "
    "correlation of 0.9 or more. Class and split are equal. The list has none: a burst of photos is no error."
)
_LEAK = (
    "An image of training is in validation or test, too: equal, or a near duplicate. The list has the training copy."
)
_CLASH = "One of the labels is wrong. The list has all of the copies, and only the training copy if the splits differ."


def find_by_network(
    images: Collection, good: np.ndarray, opinions: Opinions, seen: bool, fewest: int
) -> Iterator[Finding]:
    """Yield suspected labels and outliers among the `good` images, which have a row in the opinions each.

    seen: the network was trained on the images of the first split. fewest: as in `suspected_labels`.
    """
    probabilities, labels = opinions.probabilities, images.labels[good]
    rows = []
    for place in suspected_labels(labels, probabilities, fewest).tolist():
        best, index = int(probabilities[place].argmax()), int(good[place])
        own, other = 100 * probabilities[place, [labels[place], best]]
        if best != labels[place]:
            listed = images.splits[index] == 0 and not seen
            detail = f"{images.classes[best]} {other:.0f} %, {images.classes[labels[place]]} {own:.0f} %"
            rows.append(Row(index, detail, None, images.classes[best], listed))
    yield Finding("label", "Suspected wrong labels", _LABEL + (_SEEN if seen else ""), rows)
    far = [Row(int(good[n]), f"{opinions.distances[n]:.1f} times the median") for n in far_out(opinions.distances)]
    yield Finding("outlier", "Outliers", _FAR, far)


_LABEL = (
    "Confident learning (Northcutt et al. 2021, cleanlab) on the probabilities of the network. The list has the images "
    "of training. Images of validation stay: to leave out what a network gets wrong raises the accuracy on paper only."
)
_SEEN = " The network was trained on the images of training, so the list has none of them."
_FAR = (
    "The mean cosine distance of the features to the 10 nearest images is far above that of the other images: 3 "
    "interquartile ranges of the logarithm over the upper quartile (Tukey 1977)."
)


def excluded(findings: Iterable[Finding]) -> dict[int, tuple[str, Row]]:
    """Return the images of the list in order, each with the key of the first finding that puts the image there."""
    found: dict[int, tuple[str, Row]] = {}
    for finding in findings:
        for row in finding.rows:
            if row.excluded:
                found.setdefault(row.image, (finding.key, row))
    return dict(sorted(found.items()))


def _pixels(looks: Looks, index: int) -> str:
    return f"{looks.size[index, 0]} x {looks.size[index, 1]} pixels"
