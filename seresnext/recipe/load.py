"""Load a recipe: a file by path or name, its bases and `--set` become a checked `Recipe`, or a list of problems."""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from seresnext.errors import DataError, RecipeError, shorten
from seresnext.files import read_text
from seresnext.recipe.check import cross_field_problems
from seresnext.recipe.explain import REMOVED, Problem, all_keys, explain, near_miss, unknown_key
from seresnext.recipe.reader import MAX_BYTES, Node, read_value, read_yaml, write_value
from seresnext.recipe.schema import AUTO_CLASSES, Recipe

_MAX_EXPLAINED = 100


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and its origins: the dotted path of every value, and `file:line`, `--set` or `default`."""

    name: str
    recipe: Recipe
    origins: dict[str, str]


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe by path or by name, and apply `KEY=VALUE` overrides. A later override wins.

    A mapping as VALUE replaces the whole section. Raises `RecipeError` with every problem found.
    """
    path = find_recipe(name_or_path)
    root = read_file(path)
    problems: list[str] = []
    for override in overrides:
        try:
            root = _override(root, override)
        except RecipeError as error:
            problems += [f"--set {shorten(override)}: {text.removeprefix('--set: ')}" for text in error.problems]
    recipe = _validate(root, display(path), problems, is_new=True)
    return LoadedRecipe(path.stem, recipe, _origins(to_values(recipe), root))


def recipe_from_values(values: dict[str, Any], origin: str) -> Recipe:
    """Check the plain values of a saved recipe. `origin` names the source in a `RecipeError`.

    Keys that version 0.1 had and this version has not are dropped.
    """
    try:
        root = read_yaml(write_value(values), lambda line: origin)
    except RecursionError:
        raise RecipeError([f"{origin}: nested deeper than a recipe"]) from None
    for key in REMOVED:
        section, _, name = key.partition(".")
        if (node := root.at([section])) and isinstance(node.value, dict):
            node.value.pop(name, None)
    recipe = _validate(root, origin, [])
    if recipe.model.num_classes == AUTO_CLASSES:
        raise RecipeError([f"{origin}: model.num_classes: is auto, and a run stores a number"])
    return recipe


def to_values(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain YAML and JSON data: dicts, lists, text, numbers, booleans and None."""
    return recipe.model_dump(mode="json")


def _override(root: Node, override: str) -> Node:
    """Return the recipe with one `KEY=VALUE` applied."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or not text.strip():
        raise RecipeError(["write KEY=VALUE, such as --set optimizer.lr=0.4 (null for no value)"])
    if key not in all_keys():
        parent, _, name = key.rpartition(".")
        raise RecipeError([f"{shorten(key)}: {unknown_key(parent, name)}"])
    for value in (Node(None, "--set"), read_value(text)):  # A section replaces null, and is merged with a section.
        for name in reversed(key.split(".")):
            value = Node({name: value}, "--set", "a section")
        root = merge(root, value)
    return root


def _validate(root: Node, where: str, problems: list[str], is_new: bool = False) -> Recipe:
    """Return the recipe. Raise a `RecipeError` with `problems` and all other problems.

    A recipe `is_new` if it comes from files and options, not from a checkpoint.
    """
    found: list[tuple[Problem, Node | None]] = []
    more: list[str] = []
    try:
        recipe = Recipe.model_validate(root.plain())
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # The search for a close name takes time.
        found = [explain(details, root) for details in errors[:_MAX_EXPLAINED]]
        more = [f"and {len(errors) - len(found)} more"] if len(errors) > len(found) else []
        recipe = _repaired(root.plain(), errors)
    wrong = [problem.key.partition("[")[0] for problem, _ in found]
    for problem in cross_field_problems(recipe, is_new):
        keys = (problem.key, *problem.related)
        if not any(_overlap(key, bad) for key in keys for bad in wrong):
            # The node of the first key that stands in a file or an override.
            nodes = (root.at(key.split(".")) for key in keys)
            found.append((problem, next((node for node in nodes if node), None)))
    problems += [f"{node.origin if node else where}: {problem.key}: {problem.message}" for problem, node in found]
    if problems:
        raise RecipeError(problems + more)
    return recipe


def _repaired(values: dict[str, Any], errors: list[ErrorDetails]) -> Recipe:
    """Return the recipe without the invalid values, to check the other values against each other."""
    for details in errors:
        keys = [step for step in details["loc"] if isinstance(step, str)]
        section = values
        for key in keys[:-1]:
            section = section.get(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section.pop(keys[-1], None)
    values.setdefault("model", {}).setdefault("name", "seresnext50")
    return Recipe.model_validate(values)


def _overlap(a: str, b: str) -> bool:
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def _origins(values: dict[str, Any], root: Node | None) -> dict[str, str]:
    """Return the origin of each value by dotted key."""
    origins: dict[str, str] = {}
    for key, value in values.items():
        node = root and root.at([key])
        if isinstance(value, dict):
            origins |= {f"{key}.{name}": origin for name, origin in _origins(value, node).items()}
        else:
            origins[key] = node.origin if node else "default"
    return origins


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
