"""An examination: look at all images, compare the images, ask networks, collect the findings, and write the page."""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from seresnext.data.decode.pillow import Decoding, decode
from seresnext.data.formats import detect_format, open_reader
from seresnext.data.readers import Reader
from seresnext.data.readers.photo_choice import photo_choice
from seresnext.doctor.findings import (
    classes_like_one,
    exclusions,
    find_by_network,
    find_copies,
    find_in_files,
    find_unreadable,
)
from seresnext.doctor.images import Collection, components, equal_pairs, is_empty, look_at, near_pairs
from seresnext.doctor.network import FOLDS, Networks, ask, check_known, cross_validate
from seresnext.errors import as_utf8, for_terminal
from seresnext.recipe import load_recipe
from seresnext.report.html import SIDE, address, render_page


def examine(root: str, networks: Networks) -> tuple[dict[str, Any], list[dict[str, Any]], Collection]:
    """Examine the images below a root. Return the result, the exclusion list, and the images that can be decoded.

    The result has the form of the JSON file. `method` describes the networks, and is empty without networks. `pairs`
    are the classes that look like one, with the share of images that is mixed up. Nothing is written.
    Raises DataError for data that cannot be used, CheckpointError or UsageError for weights that do not fit.
    """
    started, everything = time.monotonic(), Collection(open_splits(root))
    if networks.weights and not networks.folds:
        check_known(everything, networks.weights)
    for notice in everything.notices:
        print(f"warning: {for_terminal(notice)}")
    names, splits = everything.split_names, everything.splits
    counts = ", ".join(f"{(splits == number).sum():,} of {name}" for number, name in enumerate(names))
    print(f"{len(everything):,} images of {len(everything.classes):,} classes: {counts}")
    looks, errors = look_at(everything, networks.decoding)
    images = everything.take(np.delete(np.arange(len(everything)), list(errors)))
    equal = equal_pairs(looks["digest"], images.splits)
    alone = np.setdiff1d(np.flatnonzero(~is_empty(looks)), equal[:, 1])
    near = alone[near_pairs(looks["bits"][alone], looks["pixels"][alone])]
    findings = [find_unreadable(everything, errors), *find_copies(images, equal, near), *find_in_files(images, looks)]
    method, alike = [], []
    if (networks.weights or networks.folds) and len(images.classes) > 1 and len(images) > max(networks.folds, 1):
        copies = components(np.concatenate([equal, near]), len(images))
        (probabilities, distances), method, knows = _judge(images, copies, networks)
        findings[:0] = find_by_network(images, probabilities, distances, knows, max(networks.folds, 2))
        found = classes_like_one(images.labels, probabilities)
        alike = [(as_utf8(images.classes[one]), as_utf8(images.classes[other]), mixed) for one, other, mixed in found]
    listed = exclusions(findings)
    by_size = looks["size"][np.argsort(looks["size"].min(1), kind="stable")].tolist()
    places = {"smallest": 0, "median": len(by_size) // 2, "largest": -1} if by_size else {}
    result = {
        "data": root,
        "num_images": len(everything),
        "num_listed": len(listed),
        "method": method,
        "pairs": alike,
        "seconds": time.monotonic() - started,
        "notices": everything.notices,
        "classes": count_classes(everything, listed),
        "sizes": {name: by_size[place] for name, place in places.items()},
        "findings": [each._asdict() for each in findings],
    }
    return result, listed, images


def count_classes(images: Collection, listed: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return name and images of each class: in each split, and in the exclusion list."""
    in_list = Counter(row["label"] for row in listed)
    counts = Counter(zip(images.labels.tolist(), images.splits.tolist(), strict=True))
    return [
        {"class": name}
        | {split: counts[label, number] for number, split in enumerate(images.split_names)}
        | {"listed": in_list[name]}
        for label, name in enumerate(map(as_utf8, images.classes))
    ]


def open_splits(root: str) -> dict[str, Reader]:
    """Return the readers of training, validation, and test if there is such a folder. Raises DataError.

    Data without train/ and val/ are divided as `seresnext finetune` divides the photographs.
    """
    format, choice = detect_format(root, "train", "folder"), None
    is_there = {split: (Path(root) / split).is_dir() for split in ("train", "val", "test")}
    if format == "folder" and not (is_there["train"] and is_there["val"]):
        choice = photo_choice(load_recipe("finetune").recipe, {})
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


PICTURES, ROWS, CLASSES = 24, 500, 1000
"""The most thumbnails and rows of a finding, and the most classes, on the page. The JSON file has all."""


def render(result: dict[str, Any], images: Collection, decoding: Decoding) -> str:
    """Return the page of an examination as ASCII. Raise UsageError without the extra, DataError for a lost image."""
    totals = {row["class"]: sum(row[split] for split in images.split_names) for row in result["classes"]}
    largest = max(totals, key=lambda name: totals[name])
    pictures = {
        each["key"]: [_picture(images, decoding, row) for row in each["rows"][:PICTURES] if row["indices"]]
        for each in result["findings"]
    }
    return render_page(
        "seresnext.doctor",
        result=result,
        pictures=pictures,
        classes=result["classes"][:CLASSES],
        largest=(largest, 100 * totals[largest] / sum(totals.values())),
        most=ROWS,
    )


def _picture(images: Collection, decoding: Decoding, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with a thumbnail, next to the image that is alike."""
    shown = [decode(images.read(index), images.name(index), decoding) for index in row["indices"]]
    is_small = max(max(image.size) for image in shown) < SIDE
    for image in shown:
        image.thumbnail((SIDE, SIDE))
    return {**row, "thumbnails": [address(image) for image in shown], "is_small": is_small}
