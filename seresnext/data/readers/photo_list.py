"""A list of photographs: CSV or JSON Lines with path, label and an optional split."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from seresnext.errors import DataError
from seresnext.files import read_text
from seresnext.printable import listed, printable

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The split that a name in a list, or a folder, stands for."""


def read_photo_list(file: Path) -> dict[str, tuple[str, str]]:
    """Return class and split of the photos of a list by path, sorted. The split is train if the list gives none.

    Raises one DataError for all mistakes, with the numbers of lines.
    """
    lines = _json_lines if file.suffix.lower() == ".jsonl" else _csv_lines
    photos: dict[str, tuple[str, str]] = {}
    numbers: dict[str, int] = {}
    mistakes = []
    for number, values in lines(read_text(file), file):
        if isinstance(values, str):
            mistakes.append(f"line {number}: {values}")
            continue
        path, label, split = (values.get(key, "").strip() for key in ("path", "label", "split"))
        known = SPLIT_NAMES.get(split.lower() or "train")
        problems = [f"{key} is missing" for key, value in (("path", path), ("label", label)) if not value]
        if not known:
            problems.append(f"split is {printable(split)}, not {', '.join(SPLIT_NAMES)}")
        if path and not os.path.isfile(file.parent / path):  # noqa: PTH113 (raises nothing for odd names)
            problems.append(f"there is no file {printable(path)}")
        if path and numbers.setdefault(path, number) != number:
            problems.append(f"{printable(path)} is in line {numbers[path]}, too")
        mistakes += [f"line {number}: {problem}" for problem in problems]
        photos[path] = label, known or ""
    if mistakes:
        heading = f"{file} cannot be used; correct {len(mistakes):,} mistake{'s' * (len(mistakes) > 1)}:"
        raise DataError("\n  ".join([heading, *listed(mistakes)]))
    if not photos:
        raise DataError(f"{file} lists no photos; write a line with path and label for each photo")
    return dict(sorted(photos.items()))


def _csv_lines(text: str, file: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the number and the values of each line, or a mistake. The first line names the columns."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=delimiter, strict=True)
    try:
        rows.fieldnames = names = [name.strip().lower() for name in rows.fieldnames or ()]
        if not {"path", "label"} <= set(names):
            raise DataError(
                f"{file} has the columns {printable(', '.join(names)) or '-'} in the first line; name the columns "
                "path, label and, if the list gives the splits, split"
            )
        for row in rows:
            yield rows.line_num, f"more than {len(names)} values" if None in row else row
    except csv.Error as error:
        yield rows.reader.line_num, f"this is not CSV ({error})"


def _json_lines(text: str, file: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, {key: str(value) for key, value in json.loads(line).items() if value is not None}
        except AttributeError:
            yield number, "this is no JSON object with path and label"
        except (ValueError, RecursionError) as error:
            yield number, f"this is not JSON ({error})"
