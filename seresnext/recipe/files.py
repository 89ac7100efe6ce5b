"""Recipe files: lookup by path or name, reading with bases, and merging."""

from __future__ import annotations

import os.path
from pathlib import Path

from seresnext.errors import RecipeError
from seresnext.printable import shorten
from seresnext.recipe.explain import near_miss
from seresnext.recipe.reader import MAX_BYTES, Node, Unreadable, decode_bytes, read_yaml

_PACKAGE = Path(__file__).parents[1]
_MAX_BASES_DEEP = 20


def recipe_folders() -> list[Path]:
    """Return the folders that are searched for a name: `recipes/` in the current folder, then the installed recipes.

    An installed package contains the recipes. A clone of the repository has the recipes next to the package.
    """
    inside = _PACKAGE / "recipes"
    return [Path("recipes"), inside if inside.is_dir() else _PACKAGE.parent / "recipes"]


def recipe_names() -> list[str]:
    """Return the names of all recipes in `recipe_folders()`."""
    return sorted({path.stem for folder in recipe_folders() for path in folder.glob("*.yaml")})


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a recipe, given a path or a name, with or without `.yaml`.

    A path is tried first, then a name in `./recipes`, then a name among the installed recipes.
    """
    path = _find(str(name_or_path), Path())
    if path is None:
        raise RecipeError([_not_found(str(name_or_path), Path(), "the current folder")])
    return path


def _find(name: str, folder: Path) -> Path | None:
    """Return the file of a recipe: a path relative to `folder`, or a name. None if there is no such file."""
    name = os.path.expanduser(name)  # noqa: PTH111 - a Path loses the `./` that excludes names
    spellings = [name] if name.endswith((".yaml", ".yml")) else [f"{name}.yaml", name]
    folders = [folder] if name.startswith((".", "/")) else [folder, *recipe_folders()]
    paths = [place / spelling for place in folders for spelling in spellings]
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113 - False for any bad name


def _not_found(name: str, folder: Path, folder_name: str) -> str:
    """Return the message for a recipe that is not found, with the closest name and all names."""
    written, names = Path(name), recipe_names()
    parent = (folder / name).parent
    files = sorted(file.name for file in parent.glob("*.yaml")) if os.path.isdir(parent) else []  # noqa: PTH112
    file = near_miss(written.name, files)
    close = written.with_name(file) if file else near_miss(written.name.removesuffix(".yaml"), names)
    hint = f"did you mean {close}? " if close else ""
    known = f"recipes: {', '.join(names) or 'none'}"
    return f"no recipe {shorten(name)!r}: {folder_name} has no such file, and no recipe has this name; {hint}{known}"


def display(path: Path) -> str:
    """Return the path as a user knows it: relative to the current folder if possible."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(path)


class RecipeFiles:
    """Reader of files with their bases. Each file is read once. Problems are appended to the list `problems`.

    `are_read` is False if a file or a base cannot be read. The values are then incomplete.
    """

    def __init__(self, problems: list[str]) -> None:
        self.are_read = True
        self._problems = problems
        self._merged: dict[Path, Node] = {}

    def read(self, path: Path, chain: tuple[Path, ...] = ()) -> Node:
        """Return the values of a file over the values of its bases. `chain` are the files that are based on it."""
        key = path.resolve()
        if key not in self._merged:
            self._merged[key] = self._read(path, (*chain, key))
        return self._merged[key]

    def _fail(self, *problems: str) -> Node:
        self.are_read = False
        self._problems += problems
        return Node({}, "")

    def _read(self, path: Path, chain: tuple[Path, ...]) -> Node:
        label = display(path)

        def origin_of(line: int) -> str:
            return f"{label}:{line}"

        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                return self._fail(f"{label}: larger than {MAX_BYTES:,} bytes; this is not a recipe")
            root, problems = read_yaml(decode_bytes(data, origin_of), origin_of)
        except OSError as error:
            return self._fail(f"{label}: cannot be read: {error.strerror}")
        except Unreadable as problem:
            return self._fail(str(problem))
        self._problems += problems
        if root is None or not isinstance(root.value, dict):
            found = "is empty" if root is None or root.value is None else "is not a mapping of sections"
            origin = label if root is None else root.origin
            return self._fail(f"{origin}: {found}; write sections, such as 'model: {{name: seresnext50}}'")
        merged = Node({}, root.origin)
        if base := root.value.pop("base", None):
            for item in base.value if isinstance(base.value, list) else [base]:
                merged = merge(merged, self._base(path, base.origin, item, chain))
        return merge(merged, root)

    def _base(self, path: Path, origin: str, item: Node, chain: tuple[Path, ...]) -> Node:
        if item.broken:
            return self._fail()
        if not isinstance(item.value, str) or not item.value:
            found = item.written or "no name"
            return self._fail(f"{origin}: base: expected a recipe or a list of recipes, found {found}")
        target = _find(item.value, path.parent)
        if target is None:
            problem = _not_found(item.value, path.parent, f"the folder of {display(path)}")
            return self._fail(f"{origin}: base: {problem}")
        if target.resolve() in chain:
            names = " -> ".join(display(step) for step in (*chain, target))
            return self._fail(f"{origin}: base: {display(target)} is based on itself: {names}")
        if len(chain) > _MAX_BASES_DEEP:
            return self._fail(f"{origin}: base: more than {_MAX_BASES_DEEP} files deep")
        return self.read(target, chain)


def merge(below: Node, above: Node) -> Node:
    """Return `below` with the values of `above`. Sections are merged key by key, other values are replaced."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, above.origin, broken=above.broken)
