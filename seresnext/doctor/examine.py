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

from seresnext.data.decode.pillow import Decoding
from seresnext.data.formats import detect_format, open_reader
from seresnext.data.readers import Reader
from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.doctor.duplicates import components, near_pairs
from seresnext.doctor.findings import Finding, equal_files, exclusions, find_by_network, find_copies, find_in_files
from seresnext.doctor.images import Collection, Looks, look_at
from seresnext.doctor.labels import classes_like_one
from seresnext.doctor.network import FOLDS, Networks, ask, check_known, cross_validate
from seresnext.printable import as_utf8, for_terminal
from seresnext.recipe.schema import RuntimeSection

_COLUMNS = ("path", "reason", "split", "label", "suggestion", "other", "detail")
_VAL_SHARE = 0.2  # as in the recipe `finetune`


@dataclass(frozen=True)
class Examination:
    """The result of an examination.

    `listed` are the rows of the exclusion list. `method` describes the networks, and is empty without networks. `pairs`
    are the classes that look like one, with the share of images that is mixed up.
    """

    source: str
    images: Collection
    looks: Looks
    decoding: Decoding
    findings: Sequence[Finding]
    listed: Sequence[dict[str, Any]]
    method: Sequence[str]
    pairs: Sequence[tuple[str, str, float]]
    seconds: float

    def classes(self) -> list[dict[str, Any]]:
        """Return name and images of each class: in each split, and in the list."""
        images, names = self.images, self.images.split_names
        parts = [images.splits == number for number in range(len(names))]
        parts.append(np.array([row["indices"][0] for row in self.listed], np.int64))
        counts = (np.bincount(images.labels[part], minlength=len(images.classes)).tolist() for part in parts)
        keys, rows = ("class", *names, "listed"), zip(map(as_utf8, images.classes), *counts, strict=True)
        return [dict(zip(keys, row, strict=True)) for row in rows]

    def sizes(self) -> dict[str, list[int]]:
        """Return width and height of the smallest, the median and the largest image, by the shorter side."""
        size = self.looks.size[self.looks.good()]
        order = np.argsort(size.min(1), kind="stable")
        places = {"smallest": 0, "median": len(size) // 2, "largest": -1} if len(size) else {}
        return {name: size[order[place]].tolist() for name, place in places.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the result as in the JSON file."""
        named = {name: getattr(self, name) for name in ("method", "pairs", "seconds")}
        numbers = {"num_images": len(self.images), "num_listed": len(self.listed)}
        tables = {"classes": self.classes(), "sizes": self.sizes(), "findings": [vars(each) for each in self.findings]}
        return {"data": self.source, **numbers, **named, "notices": self.images.notices, **tables}

    def exclusion_list(self) -> str:
        """Return the exclusion list as CSV: `path` and `reason` of each image, and help for a decision."""
        text = io.StringIO()
        table: csv.DictWriter[str] = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(self.listed)
        return text.getvalue()


def examine(root: str, networks: Networks) -> Examination:
    """Examine the images below a root. Nothing is written.

    Raises DataError for data that cannot be used, CheckpointError or UsageError for weights that do not fit.
    """
    started, images = time.monotonic(), Collection(open_splits(root))
    if networks.weights and not networks.folds:
        check_known(images, networks.weights)
    for notice in images.notices:
        print(f"warning: {for_terminal(notice)}")
    counts = zip(np.bincount(images.splits).tolist(), images.split_names, strict=True)
    splits = ", ".join(f"{count:,} of {name}" for count, name in counts)
    print(f"{len(images):,} images of {len(images.classes):,} classes: {splits}")
    looks = look_at(images, networks.decoding)
    findings, good, groups = list(find_in_files(images, looks)), looks.good(), equal_files(images, looks)
    empty = {row["indices"][0] for finding in findings if finding.key == "empty" for row in finding.rows}
    alone = np.array(sorted({*good.tolist()} - empty - {index for group in groups for index in group[1:]}), np.int64)
    pairs = alone[near_pairs(looks.bits[alone], looks.pixels[alone])]
    findings[1:1] = find_copies(images, groups, pairs)
    method, alike = [], []
    if (networks.weights or networks.folds) and len(images.classes) > 1 and len(good) > networks.folds:
        links = [(group[0], index) for group in groups for index in group[1:]]
        copies = components(np.array([*pairs.tolist(), *links], np.int64).reshape(-1, 2), len(images))[good]
        (probabilities, distances), method, knows = _judge(images.take(good), copies, networks)
        findings[:0] = find_by_network(images, probabilities, distances, good, knows, max(networks.folds, 2))
        found = classes_like_one(images.labels[good], probabilities)
        alike = [(as_utf8(images.classes[one]), as_utf8(images.classes[other]), mixed) for one, other, mixed in found]
    listed, seconds = exclusions(findings), time.monotonic() - started
    return Examination(root, images, looks, networks.decoding, findings, listed, method, alike, seconds)


def open_splits(root: str) -> dict[str, Reader]:
    """Return the readers of training, validation, and test if there is such a folder. Raises DataError.

    Data without train/ and val/ are divided as `seresnext finetune` divides the photographs.
    """
    format, choice = detect_format(root, "train", "folder"), None
    is_there = {split: (Path(root) / split).is_dir() for split in ("train", "val", "test")}
    if format == "folder" and not (is_there["train"] and is_there["val"]):
        choice = PhotoChoice(val_share=_VAL_SHARE, seed=RuntimeSection().seed)
    splits = ("train", "val", "test") if is_there["test"] else ("train", "val")
    return {split: open_reader(root, split, format, choice=choice) for split in splits}


def _judge(
    reader: Collection, copies: np.ndarray, networks: Networks
) -> tuple[tuple[np.ndarray, np.ndarray], list[str], bool]:
    """Return probabilities and distances, sentences on the method, and whether the network knows training labels."""
    weights, folds = networks.weights, networks.folds
    metadata = weights.metadata if weights else None
    knows = metadata is not None and metadata.dataset["fingerprint"] in reader.fingerprint.split()
    if folds:
        start = weights.source if weights else "random weights"
        method = [f"{folds} short trainings from {start}. Each network judges the images that were left out for it."]
        method += ["The first weights were trained on these images, so the probabilities are too high."] * knows
        found, knows = cross_validate(reader, copies, networks), False
    else:
        assert weights
        method = [f"The network of {weights.source} judges all images."]
        method.append(
            "The network was trained on the images of training, and so knows their labels, right or wrong. Only the "
            f"findings in other splits are out of sample: --folds {FOLDS} judges all images out of sample."
            if knows
            else "The findings hold for images that this network was not trained on."
        )
        found = ask(reader, weights, networks)
    right = 100 * float((found[0].argmax(1) == reader.labels).mean())
    return found, [*method, f"The prediction is the label for {right:.1f} % of the images."], knows
