"""The choice of photos: from a recipe and its files, and in a checkpoint."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seresnext.data.readers import Reader
from seresnext.data.readers.photos import PhotoChoice, PhotoReader, is_choice, split_table
from seresnext.errors import CheckpointError
from seresnext.files import read_lines
from seresnext.paths import is_list
from seresnext.recipe.schema import Recipe
from seresnext.run.class_selection import read_class_map


def photo_choice(recipe: Recipe, stored: Mapping[str, Any] | None = None) -> PhotoChoice | None:
    """Return the choice of photos of a recipe, or None if the recipe chooses none.

    `stored` is the choice of the run to resume: the photos keep their splits. Raises DataError for a file of the recipe
    that cannot be read.
    """
    data = recipe.data
    if data.format != "folder" or not (data.split or data.ignore or data.class_map or data.exclude):
        return None
    known = _read(stored) if stored is not None else PhotoChoice(seed=recipe.runtime.seed)
    return PhotoChoice(
        val_share=data.split.val if data.split else None,
        seed=known.seed,
        ignore=data.ignore,
        class_map=read_class_map(Path(data.class_map), "data.class_map", False) if data.class_map else {},
        excluded=read_excluded(Path(data.exclude), Path(data.root)) if data.exclude else frozenset(),
        kept=known.kept,
    )


def read_excluded(file: Path, root: Path) -> frozenset[str]:
    """Return the paths of a list of photos to leave out: a path a line, or CSV with the column `path`.

    Absolute paths become paths below the root. Raises DataError for a list that cannot be read.
    """
    base = root.parent if is_list(root) else root
    rows = list(csv.reader(read_lines(file)))
    names = [name.strip().lower() for name in rows[0]] if rows else []
    place = names.index("path") if "path" in names else None
    paths = [",".join(row) for row in rows] if place is None else [row[place] for row in rows[1:] if len(row) > place]
    # An absolute path replaces the base in `join`.
    return frozenset(os.path.relpath(os.path.join(base, path), base) for path in paths)  # noqa: PTH118


def stored_choice(dataset: Mapping[str, Any]) -> PhotoChoice | None:
    """Return the choice of photos in the description of the data in a checkpoint, if any."""
    return _read(dataset["choice"]) if "choice" in dataset else None


def _read(values: Any) -> PhotoChoice:
    """Return the choice in a checkpoint. Raises CheckpointError for values that no run writes."""
    if not is_choice(values):
        raise CheckpointError("the checkpoint has a choice of photos that no run writes; use another checkpoint")
    return PhotoChoice.from_values(values)


def choice_of(train: Reader) -> dict[str, Any]:
    """Return the entry of the choice in the description of the data in checkpoints, empty for other readers."""
    return {"choice": train.choice.to_values()} if isinstance(train, PhotoReader) else {}


def photo_files(train: Reader, val: Reader) -> dict[str, str]:
    """Return the files of the run folder about photos, by name: `split.csv`, or none for other readers."""
    return {"split.csv": split_table({"train": train, "val": val})} if isinstance(train, PhotoReader) else {}
