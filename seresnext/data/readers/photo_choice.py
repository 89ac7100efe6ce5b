"""The choice of photos: which files count, under which class, and in which split. A checkpoint stores the choice."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from seresnext.errors import CheckpointError, DataError
from seresnext.files import is_list, read_lines
from seresnext.recipe.schema import Recipe, Section

Texts = Annotated[tuple[str, ...], Field(strict=False)]


class PhotoChoice(Section):
    """The photos that count, and the split of each photo.

    `val_share` (0 to 1) divides data without validation photos, by `seed` and the content of each photo. `ignore` are
    patterns of paths. `class_map` has new names of classes; an empty name leaves a class out. `excluded` are the paths
    of photos to leave out. `kept` has the split of each photo, by the digest of the content, whose split is not by the
    hash, because a class would have no photo in that split. `is_stored`: the choice comes from a checkpoint. Photos of
    more than `max_pixels` are left out like unreadable photos.
    """

    val_share: float | None = Field(default=None, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    ignore: Annotated[Texts, Field(max_length=1000)] = ()  # A recipe has fewer values.
    class_map: dict[str, str] = Field(default_factory=dict)
    excluded: Texts = ()
    kept: dict[str, Literal["train", "val"]] = Field(default_factory=dict)
    is_stored: bool = Field(default=False, exclude=True)
    max_pixels: int = Field(default=500_000_000, ge=1, le=500_000_000)


def photo_choice(recipe: Recipe, dataset: Mapping[str, Any]) -> PhotoChoice | None:
    """Return the choice of photos of a recipe, or None if the recipe chooses none.

    `dataset` describes the data of the run to resume, if any: the photos keep their splits. Raises DataError for a file
    of the recipe that cannot be read.
    """
    data = recipe.data
    if data.format != "folder" or not (data.split or data.ignore or data.class_map or data.exclude):
        return None
    before = stored_choice(dataset) or PhotoChoice(seed=recipe.runtime.seed)
    lists, problems = {}, []
    for name, key, file, read in (
        ("class_map", "data.class_map", data.class_map, lambda file: read_class_map(file, "data.class_map", False)),
        ("excluded", "data.exclude", data.exclude, lambda file: _read_excluded(file, Path(data.root))),
    ):
        try:
            lists |= {name: read(Path(file))} if file else {}
        except DataError as error:
            problems.append(str(error) if key in str(error) else f"{key}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    lists |= {"val_share": data.split.val if data.split else None, "max_pixels": data.max_pixels}
    return PhotoChoice(seed=before.seed, ignore=data.ignore, kept=before.kept, **lists)


def stored_choice(dataset: Mapping[str, Any], source: str = "the checkpoint") -> PhotoChoice | None:
    """Return the choice in the description of the data in the checkpoint `source`, if any. Raises CheckpointError."""
    if "choice" not in dataset:
        return None
    try:
        return PhotoChoice.model_validate({**dataset["choice"], "is_stored": True})
    except (ValidationError, TypeError):
        raise CheckpointError(f"{source} has a choice of photos that no run writes; use another file") from None


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


def _read_excluded(file: Path, root: Path) -> tuple[str, ...]:
    """Return the paths below the root in a list of photos: a path a line, or CSV with the column `path`."""
    base, lines = root.parent if is_list(root) else root, read_lines(file)
    columns = [name.strip().lower() for name in next(csv.reader(lines[:1]), [])]
    if "path" in columns:
        lines = [row[columns.index("path")] for row in csv.reader(lines[1:]) if len(row) == len(columns)]
    # A path may be absolute, which replaces the base.
    return tuple(sorted({os.path.relpath(os.path.join(base, path), base) for path in lines}))  # noqa: PTH118
