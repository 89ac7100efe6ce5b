"""Labels of the class folders: for a model from a file of weights without class names, and from a file of the user."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.errors import DataError
from seresnext.files import read_lines
from seresnext.printable import printable


def labels_by_name(classes: Sequence[str], where: str) -> tuple[list[int], str | None]:
    """Return the label of each class folder of the data `where`, and a notice for the user.

    Numbers from 0 are labels. A model of 1000 classes counts as a model of ImageNet, where a label is the position of a
    WordNet id. Raises DataError for 1000 classes of other names, because the labels of these names are unknown.
    """
    count = len(classes)
    numbers = [int(name) for name in classes if len(name) < 300 and name.isascii() and name.isdigit()]
    if sorted(numbers) == list(range(count)):
        return numbers, f"the class folders of {where} are numbers: each number is the label, 0 to {count - 1}"
    places = {row.wordnet_id: place for place, row in enumerate(imagenet_classes())}
    if places.keys() == set(classes):
        return [places[name] for name in classes], None
    if count == len(places):
        others = ", ".join(printable(name) for name in sorted(set(classes) - places.keys())[:3])
        raise DataError(
            f"{where} has {count} class folders such as {others}, and a file of weights without class names needs "
            f"ImageNet's WordNet ids or the numbers 0 to {count - 1}; rename each folder to its WordNet id or label"
        )
    first = ", ".join(printable(name) for name in classes[:3])
    notice = f"the class folders of {where} are taken in text order: labels 0, 1 and so on are {first} ..."
    return list(range(count)), notice


def read_class_map(path: Path, option: str = "--class-map", has_numbers: bool = True) -> dict[str, str]:
    """Return the class of each folder from a text file: `folder,class` a line, or only folders (then labels 0, 1, ...).

    A file of folders alone is timm's `--class-map`, and is refused unless `has_numbers`. Empty lines do not count.
    `option` names the setting in messages. Raise DataError.
    """
    found: dict[str, str] = {}
    for number, row in enumerate(csv.reader(read_lines(path))):
        folder, name = row if len(row) == 2 else (row[0], str(number))
        if len(row) > 2 or folder in found or (len(row) == 1 and not has_numbers):
            problem = "repeats a folder" if folder in found else f"has {len(row)} part{'s' * (len(row) > 1)}"
            raise DataError(f"{option} {path}: line {number + 1} {problem}; write `folder,class` for each folder")
        found[folder] = name.strip()
    return found
