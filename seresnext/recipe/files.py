"""Recipe files: lookup by path or name, reading with bases, and merging."""

import os.path
from functools import partial
from pathlib import Path

from seresnext.errors import DataError, RecipeError
from seresnext.files import read_text
from seresnext.printable import shorten
from seresnext.recipe.explain import near_miss
from seresnext.recipe.reader import MAX_BYTES, Node, read_yaml

_PACKAGE = Path(__file__).parents[1]
_MOST_BASES = 50  # of which each is the base of the next


def recipe_folders() -> list[Path]:
    """Return the folders that are searched for a name: `recipes/` in the current folder, then the installed recipes.

    An installed package contains the recipes. A clone of the repository has the recipes next to the package.
    """
    inside = _PACKAGE / "recipes"
    return [Path("recipes"), inside if inside.is_dir() else _PACKAGE.parent / "recipes"]


def recipe_names() -> list[str]:
    """Return the names of all recipes in `recipe_folders()`."""
    return sorted({path.stem for folder in recipe_folders() for path in folder.glob("*.yaml")})


def find_recipe(
    name_or_path: str | Path, folder: Path = Path(), where: str = "", folder_name: str = "the current folder"
) -> Path:
    """Return the file of a recipe, given a path or a name, with or without `.yaml`. Raises `RecipeError`.

    A path, relative to `folder`, is tried first, then a name in `./recipes`, then a name among the installed recipes.
    `where` begins the message of an error.
    """
    name = str(name_or_path)
    expanded = os.path.expanduser(name)  # noqa: PTH111 - a Path loses the `./` that excludes names
    spellings = [expanded] if name.endswith((".yaml", ".yml")) else [f"{expanded}.yaml", expanded]
    folders = [folder] if expanded.startswith((".", "/")) else [folder, *recipe_folders()]
    for path in (place / spelling for place in folders for spelling in spellings):
        if os.path.isfile(path):  # noqa: PTH113 - False for any bad name
            return path
    names = recipe_names()
    close = near_miss(Path(name).stem, names)
    hint = f"did you mean {close}? " if close else ""
    problem = f"{where}no recipe {shorten(name)!r}: {folder_name} has no such file, and no recipe has this name"
    raise RecipeError([f"{problem}; {hint}recipes: {', '.join(names) or 'none'}"])


def display(path: Path) -> str:
    """Return the path as a user knows it: relative to the current folder if possible."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(path)


def read_file(path: Path, above: tuple[Path, ...] = (), read: dict[Path, Node] | None = None) -> Node:
    """Return the values of a file over the values of its bases. Raises `RecipeError`.

    `above` are the files that are based on this file. `read` has the values of the files that were read before.
    """
    done = {} if read is None else read
    label, key = display(path), path.resolve()
    if key in done:
        return done[key]
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError([f"{label}: larger than {MAX_BYTES:,} bytes; this is not a recipe"])
    try:
        root = read_yaml(read_text(Path(label)), partial("{}:{}".format, label))
    except DataError as error:
        raise RecipeError([str(error)]) from None
    if not isinstance(root.value, dict):
        problem = "is empty or no mapping of sections; write sections, such as 'model: {name: seresnext50}'"
        raise RecipeError([f"{root.origin}: {problem}"])
    merged = Node({}, root.origin)
    if base := root.value.pop("base", None):
        chain = (*above, key)
        for item in base.value if isinstance(base.value, list) else [base]:
            merged = merge(merged, read_file(_find_base(item, base.origin, path.parent, chain), chain, done))
    done[key] = merge(merged, root)
    return done[key]


def _find_base(item: Node, origin: str, folder: Path, chain: tuple[Path, ...]) -> Path:
    """Return the file of a base that the last file of the `chain`, in `folder`, names. Raises `RecipeError`."""
    if not isinstance(item.value, str):
        raise RecipeError([f"{origin}: base: must be a recipe or a list of recipes, found {item.written or 'no name'}"])
    path = find_recipe(item.value, folder, f"{origin}: base: ", f"the folder of {display(chain[-1])}")
    if path.resolve() in chain:
        names = " -> ".join(map(display, (*chain, path)))
        raise RecipeError([f"{origin}: base: {display(path)} is based on itself: {names}"])
    if len(chain) > _MOST_BASES:
        raise RecipeError([f"{origin}: base: more than {_MOST_BASES} files deep; write the keys into fewer files"])
    return path


def merge(below: Node, above: Node) -> Node:
    """Return `below` with the values of `above`. Sections are merged key by key, other values are replaced."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, above.origin, "a section")
