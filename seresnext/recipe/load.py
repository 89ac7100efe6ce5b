"""Load a recipe: a file, its bases and `--set` become a checked `Recipe`. All problems are reported at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from seresnext.errors import RecipeError
from seresnext.printable import shorten
from seresnext.recipe.check import cross_field_problems
from seresnext.recipe.explain import REMOVED, Problem, all_keys, explain, unknown_key
from seresnext.recipe.files import display, find_recipe, merge, read_file
from seresnext.recipe.reader import Node, read_value, read_yaml, write_value
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
