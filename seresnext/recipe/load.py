"""From a file, its bases and `--set` to a checked `Recipe`, with the origin of every value and all problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from seresnext.errors import RecipeError, expand_home
from seresnext.printable import shorten
from seresnext.recipe.check import cross_field_problems
from seresnext.recipe.check_written import meant_keys, written_problems
from seresnext.recipe.explain import all_keys, explain, unknown_key
from seresnext.recipe.files import RecipeFiles, display, find_recipe
from seresnext.recipe.problem import Problem
from seresnext.recipe.reader import MAX_DEPTH, MAX_VALUES, Node, Unreadable, read_value, write_scalar
from seresnext.recipe.schema import Recipe

_MAX_PROBLEMS = 100
_PATHS = ("data.root", "data.cache", "model.weights")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, its values as plain YAML data, and where each was written.

    `origins` maps the dotted path of every value to `file:line`, `--set` or `default`.
    """

    name: str
    recipe: Recipe
    values: dict[str, Any]
    origins: dict[str, str]

    @property
    def meant(self) -> frozenset[str]:
        """The keys that somebody wrote for a run of this length."""
        return meant_keys(self.origins)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe by path, or by its name in `recipes/`, and set `KEY=VALUE` overrides on it, the last one winning.

    A mapping as VALUE replaces the whole section. Raises `RecipeError` with every problem found.
    """
    path = find_recipe(name_or_path)
    problems: list[str] = []
    root = RecipeFiles(problems).read(path)
    for override in overrides:
        root = _override(root, override, problems)
    if root is None:
        raise RecipeError(_cut(problems))
    for key in _PATHS:
        node = _at(root, key)
        if node and isinstance(node.value, str) and node.value.startswith("~"):
            root = _replace(root, key.split("."), replace(node, value=str(expand_home(node.value))))
    recipe = _validate(root, display(path), problems, for_a_run=True)
    values = to_values(recipe)
    return LoadedRecipe(path.stem, recipe, values, _origins(values, root))


def recipe_from_values(values: dict[str, Any], origin: str) -> Recipe:
    """Check plain values, such as the recipe stored in a checkpoint. `origin` names their source in a `RecipeError`."""
    if _count(values) > MAX_VALUES:
        raise RecipeError([f"{origin}: more than {MAX_VALUES} values; this is not a recipe"])
    return _validate(_node_of(values, origin), origin, [])


def to_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain YAML and JSON data: dicts, lists, text, numbers, booleans and None."""
    return recipe.model_dump(mode="json")


def _override(root: Node | None, override: str, problems: list[str]) -> Node | None:
    """The recipe with one `KEY=VALUE` set. Problems are noted also where there is no recipe to set it on."""
    key, equals, text = override.partition("=")
    key = key.strip()
    where = f"--set {shorten(override)}"
    if not equals or not key or not text.strip():
        problems.append(f"{where}: write KEY=VALUE, such as --set optimizer.lr=0.4 (null for nothing)")
        return root
    if key not in all_keys():
        problems.append(f"{where}: {shorten(key)}: {_unknown_override(key)}")
        return root
    try:
        value, found = read_value(text, key)
    except Unreadable as problem:
        problems.append(f"{where}: {str(problem).removeprefix('--set: ')}")
        return root
    problems += [f"{where}: {problem.removeprefix('--set: ')}" for problem in found]
    if value is None:
        problems.append(f"{where}: {key}: no value")
        return root
    return root if root is None else _replace(root, key.split("."), value)


def _unknown_override(key: str) -> str:
    if key == "base":
        return "belongs in the file of a recipe"
    parent, _, name = key.rpartition(".")
    if all_keys().get(parent) is False:
        return f"{parent} has no keys inside; set it as a whole"
    return unknown_key(parent, name)


def _replace(root: Node, path: Sequence[str], value: Node) -> Node:
    """Put `value` at `path`, leaving its siblings."""
    if not path:
        return value
    entries = dict(root.value) if isinstance(root.value, dict) else {}
    entries[path[0]] = _replace(entries.get(path[0], Node({}, "--set")), path[1:], value)
    return Node(entries, root.origin, broken=root.broken)


def _at(root: Node, key: str) -> Node | None:
    """The node at a dotted path."""
    node: Node | None = root
    for step in key.split("."):
        node = node.value.get(step) if node and isinstance(node.value, dict) else None
    return node


def _count(value: Any) -> int:
    """How many values plain data consist of; more than `MAX_VALUES` are not counted to the end."""
    count, left = 0, [value]
    while left and count <= MAX_VALUES:
        item = left.pop()
        count += 1
        left += item.values() if isinstance(item, dict) else item if isinstance(item, list) else []
    return count


def _node_of(value: Any, origin: str, depth: int = 0) -> Node:
    if depth > MAX_DEPTH:
        raise RecipeError([f"{origin}: nested deeper than {MAX_DEPTH}; this is not a recipe"])
    if isinstance(value, dict):
        # pydantic gives no location for a key with half of a surrogate pair.
        if odd := [key for key in map(str, value) if not key.isprintable()]:
            raise RecipeError([f"{origin}: the key {shorten(ascii(odd[0]))} has a control character; remove the key"])
        return Node({str(key): _node_of(item, origin, depth + 1) for key, item in value.items()}, origin)
    if isinstance(value, list):
        return Node([_node_of(item, origin, depth + 1) for item in value], origin)
    return Node(value, origin, write_scalar(value) if isinstance(value, bool | None) else repr(value))


def _validate(root: Node, where: str, problems: list[str], for_a_run: bool = False) -> Recipe:
    """The recipe, or a `RecipeError` with `problems` and everything else that is wrong."""
    found: list[tuple[Problem, Node | None]] = []
    unseen = 0
    try:
        recipe = Recipe.model_validate(root.plain())
    except ValidationError as error:
        # No more than are shown: what was probably meant takes time to find.
        errors = error.errors(include_url=False)
        found = [explain(details, root) for details in errors[:_MAX_PROBLEMS]]
        unseen = len(errors) - len(found)
        recipe = _repaired(root.plain(), error)
    wrong = [problem.key.partition("[")[0] for problem, _ in found]
    if recipe:
        written = written_problems(recipe, _origins(to_values(recipe), root)) if for_a_run else ()
        for problem in [*cross_field_problems(recipe), *written]:
            if not any(_overlap(key, bad) for key in (problem.key, *problem.because) for bad in wrong):
                found.append((problem, _blamed(problem, root)))
    shown = [_line(problem, node, where) for problem, node in found if not (node and node.broken)]
    if problems or shown:
        raise RecipeError(_cut(problems + [text for _, text in sorted(shown, key=lambda pair: pair[0])], unseen))
    assert recipe is not None
    return recipe


def _cut(problems: list[str], unseen: int = 0) -> list[str]:
    more = len(problems) + unseen - _MAX_PROBLEMS
    return problems if more <= 0 else [*problems[:_MAX_PROBLEMS], f"and {more} more"]


def _repaired(values: dict[str, Any], error: ValidationError) -> Recipe | None:
    """The recipe without its invalid values, so that the others can still be checked against each other."""
    for details in error.errors(include_url=False):
        keys = [step for step in details["loc"] if isinstance(step, str)]
        section = values
        for key in keys[:-1]:
            section = section.get(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section.pop(keys[-1], None)
    values.setdefault("model", {}).setdefault("name", "seresnext50")
    try:
        return Recipe.model_validate(values)
    except ValidationError:
        return None


def _overlap(a: str, b: str) -> bool:
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def _blamed(problem: Problem, root: Node) -> Node | None:
    """The first of a problem's keys that somebody wrote."""
    for key in (problem.key, *problem.because):
        if node := _at(root, key):
            return node
    return None


def _line(problem: Problem, node: Node | None, where: str) -> tuple[tuple[str, int], str]:
    origin = node.origin if node else where
    file, _, line = origin.rpartition(":")
    order = (file, int(line)) if line.isdigit() else (origin, 0)
    return order, f"{origin}: {problem.key}: {problem.message}"


def _origins(values: dict[str, Any], root: Node | None, prefix: str = "") -> dict[str, str]:
    origins: dict[str, str] = {}
    for key, value in values.items():
        node = root.value.get(key) if root and isinstance(root.value, dict) else None
        if isinstance(value, dict):
            origins |= _origins(value, node, f"{prefix}{key}.")
        else:
            origins[prefix + key] = node.origin if node else "default"
    return origins
