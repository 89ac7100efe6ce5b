"""An examination: look at all images, compare the images, ask networks, and collect the findings."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seresnext.classifier import MAX_PIXELS
from seresnext.data.formats import detect_format, open_reader
from seresnext.data.readers import Reader
from seresnext.doctor import network
from seresnext.doctor.duplicates import components, exact_groups, near_pairs
from seresnext.doctor.findings import Finding, excluded, find_by_network, find_copies, find_in_files
from seresnext.doctor.images import Collection, Looks, Subset, look_at
from seresnext.doctor.labels import ClassPair, classes_like_one
from seresnext.doctor.network import Opinions
from seresnext.models import LoadedWeights, open_weights
from seresnext.printable import as_utf8, for_terminal, printable

_COLUMNS = ("path", "reason", "split", "label", "suggestion", "other", "detail")
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Examination:
    """The result of an examination. `method` describes the network, `pairs` are the classes that look like one."""

    source: str
    images: Collection
    looks: Looks
    findings: Sequence[Finding]
    max_pixels: int
    method: Sequence[str] = ()
    pairs: Sequence[ClassPair] = ()
    seconds: float = 0.0

    def rows(self, finding: Finding) -> list[dict[str, Any]]:
        """Return the images of a finding with names for people and programs."""
        images = self.images
        return [
            {
                "path": as_utf8(images.name(row.image)),
                "split": images.split_names[images.splits[row.image]],
                "label": as_utf8(images.classes[images.labels[row.image]]),
                "suggestion": row.suggestion,
                "other": "" if row.other is None else as_utf8(images.name(row.other)),
                "detail": as_utf8(row.detail),
                "excluded": row.excluded,
            }
            for row in finding.rows
        ]

    @property
    def listed(self) -> dict[int, str]:
        """Return the images of the exclusion list, by index, each with the key of a finding."""
        return {index: key for index, (key, _) in excluded(self.findings).items()}

    def classes(self) -> list[dict[str, Any]]:
        """Return a row for each class: images of each split, images in the list, and suspected labels."""
        images = self.images
        suspects = next((f.rows for f in self.findings if f.key == "label"), ())
        counts = {
            name: np.bincount(images.labels[images.splits == split], minlength=len(images.classes))
            for split, name in enumerate(images.split_names)
        }
        marked = {
            name: np.bincount(images.labels[np.array(places, np.int64)], minlength=len(images.classes))
            for name, places in (("listed", list(self.listed)), ("suspected", [row.image for row in suspects]))
        }
        return [
            {"class": as_utf8(name), **{key: int(column[number]) for key, column in {**counts, **marked}.items()}}
            for number, name in enumerate(images.classes)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the result as in the JSON file."""
        names, size = [as_utf8(name) for name in self.images.classes], self.looks.size[self.looks.good]
        return {
            "data": self.source,
            "images": len(self.images),
            "excluded": len(self.listed),
            "notices": list(self.images.notices),
            "method": list(self.method),
            "sizes": dict(zip(("smallest", "median", "largest"), quantiles(size), strict=True)) if len(size) else {},
            "classes": self.classes(),
            "class_pairs": [
                {"first": names[pair.first], "second": names[pair.second], "images": pair.images, "mixed": pair.mixed}
                for pair in self.pairs
            ],
            "findings": [
                {"key": each.key, "title": each.title, "measure": each.measure, "images": self.rows(each)}
                for each in self.findings
            ],
            "seconds": self.seconds,
        }

    def exclusion_list(self) -> str:
        """Return the exclusion list as CSV: `path` and `reason` of each image, and what helps a person to decide."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        for index, (key, row) in excluded(self.findings).items():
            assert row.image == index
            values = {**self.rows(Finding(key, "", "", [row]))[0], "reason": key}
            table.writerow([values[name] for name in _COLUMNS])
        return text.getvalue()


def quantiles(size: np.ndarray) -> list[str]:
    """Return the smallest, the median and the largest size (N 2, by the shorter side) as text."""
    order = np.argsort(size.min(1), kind="stable")
    return [f"{width} x {height}" for width, height in size[order[[0, len(order) // 2, -1]]].tolist()]


def examine(root: str, device: torch.device, checkpoint: str | None = None, folds: int | None = None) -> Examination:
    """Examine the images below a root, and return the result. Nothing is written.

    checkpoint: weights that are asked, or, with `folds`, that as many trainings start from. Without a checkpoint the
    trainings start from random weights. folds: 0 for no network, None for the default. Raises DataError for data that
    cannot be used, CheckpointError or UsageError for weights that do not fit.
    """
    started = time.monotonic()
    weights = open_weights(checkpoint) if checkpoint else None
    images = Collection(open_splits(root))
    for notice in images.notices:
        print(f"warning: {for_terminal(notice)}")
    print(f"{describe_counts(images)}")
    looks = look_at(images, MAX_PIXELS)
    good = looks.good
    findings = list(find_in_files(images, looks))
    groups = [
        sorted(group, key=lambda index: (-images.splits[index], index)) for group in exact_groups(looks.digest, good)
    ]
    empty = {row.image for finding in findings if finding.key == "empty" for row in finding.rows}
    alone = np.array(sorted({*good.tolist()} - empty - {index for group in groups for index in group[1:]}), np.int64)
    pairs = alone[near_pairs(looks.bits[alone], looks.pixels[alone])]
    findings += find_copies(images, groups, pairs)
    if folds is None:
        folds = 0 if weights else network.FOLDS
    method: list[str] = []
    alike: list[ClassPair] = []
    if len(good) >= 2 * folds and len(images.classes) > 1 and (weights or folds):
        links = [(group[0], index) for group in groups for index in group[1:]]
        together = components(np.array([*pairs.tolist(), *links], np.int64).reshape(-1, 2), len(images))[good]
        opinions, method, seen = _ask(Subset(images, good), together, weights, folds, device)
        findings += find_by_network(images, good, opinions, seen, max(folds, 2))
        alike = classes_like_one(images.labels[good], opinions.probabilities)
    return Examination(root, images, looks, findings, MAX_PIXELS, method, alike, time.monotonic() - started)


def open_splits(root: str) -> dict[str, Reader]:
    """Return the readers of the splits below a root: training first, then validation and test if there are any."""
    names = [name for name in _SPLITS if (Path(root) / name).is_dir()]
    if not names and Path(root).is_dir():
        return {"all": open_reader(Path(root).absolute().parent, Path(root).absolute().name)}
    return {name: open_reader(root, name, detect_format(root, name, "folder")) for name in names or _SPLITS[:1]}


def _ask(
    reader: Subset, groups: np.ndarray, weights: LoadedWeights | None, folds: int, device: torch.device
) -> tuple[Opinions, list[str], bool]:
    """Return the opinions of networks, sentences on the method, and whether a network has seen the training images."""
    metadata = weights.metadata if weights else None
    seen = metadata is not None and metadata.dataset["fingerprint"] in reader.fingerprint.split()
    if folds:
        opinions = network.cross_validate(reader, groups, folds, weights, device)
        start = weights.source if weights else "random weights"
        method = [
            f"{folds} short trainings from {start}: each network judges the images of the fold that it was not trained "
            "on. Copies of an image share a fold."
        ]
        method += ["The weights at the start were trained on these images, so all probabilities are too high."] * seen
        seen = False
    else:
        assert weights
        opinions = network.ask(reader, weights, device)
        method = [f"The network of {weights.source} judges all images."]
        method.append(
            "This network was trained on the images of training, and so knows the labels, right or wrong. Only the "
            "findings in validation are out of sample: --folds 4 trains networks that judge all images out of sample."
            if seen
            else "The findings hold for images that this network was not trained on."
        )
    agreement = 100 * float((opinions.probabilities.argmax(1) == reader.labels).mean())
    return opinions, [*method, f"The prediction is the label for {agreement:.1f} % of the images."], seen


def describe_counts(images: Collection) -> str:
    """Return the images of all splits as text."""
    counts = zip(np.bincount(images.splits).tolist(), images.split_names, strict=True)
    splits = ", ".join(f"{count:,} of {printable(name)}" for count, name in counts)
    return f"{len(images):,} images of {len(images.classes):,} classes: {splits}"


def describe(result: Examination) -> list[str]:
    """Return a result as lines for the terminal."""
    lines = [f"  {finding.title:<28} {len(finding.rows):,}" for finding in result.findings]
    lines += [f"  {'Classes that look like one':<28} {len(result.pairs):,}"] * bool(result.method)
    lines += [for_terminal(text) for text in result.method]
    return lines
