"""Recipes as text: YAML with origins, differences, hash and JSON schema."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from seresnext.recipe.load import LoadedRecipe, to_values
from seresnext.recipe.reader import write_scalar, write_value
from seresnext.recipe.schema import Recipe


def print_recipe(loaded: LoadedRecipe) -> str:
    """Return the resolved recipe as YAML with the origin of each value in a comment. The text loads again."""
    lines = [(text, loaded.origins.get(key, "")) for key, text in _yaml_lines(to_values(loaded.recipe))]
    width = max(len(text) for text, origin in lines if origin and len(text) <= 60)
    shown = [f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines]
    return "\n".join([f"# {loaded.name}, resolved: every value and its origin.", *shown]) + "\n"


def to_yaml(values: dict[str, Any]) -> str:
    """Return plain values as YAML without comments. The text loads again."""
    return "".join(text + "\n" for _, text in _yaml_lines(values))


def _yaml_lines(values: dict[str, Any], prefix: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield prefix + key, f"{indent}{write_scalar(key)}:"
            yield from _yaml_lines(value, f"{prefix}{key}.", indent + "  ")
        else:
            yield prefix + key, f"{indent}{write_scalar(key)}: {write_value(value)}"


def diff(a_values: dict[str, Any], b_values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the differences between the values of two recipes, a line each: `optimizer.lr: 0.6 -> 0.4`."""
    lines = []
    for key in a_values | b_values:
        a, b = a_values.get(key), b_values.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += diff(a, b, f"{prefix}{key}.")
            continue
        old, new = (write_value(values[key]) if key in values else "(absent)" for values in (a_values, b_values))
        if old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def recipe_hash(values: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of the values as canonical JSON: sorted keys, no spaces. The order has no effect."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """Return the JSON schema with which editors check recipe files. `base` is a key of files only."""
    schema = Recipe.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)  # A base may give the key.
        for field in part["properties"].values():
            field.pop("title", None)
            if "$ref" in field:
                field.pop("default", None)  # The fields of the section have the defaults.
            elif isinstance(default := field.get("default"), dict):
                field["default"] = f"{default['count']}{default['unit']}"
    file_name = {"type": "string", "minLength": 1}
    schema["properties"] = {
        "base": {
            "anyOf": [file_name, {"type": "array", "items": file_name}],
            "description": "Recipes to build on, by path (relative to this file) or by name. A later base overrides an "
            "earlier one, and this file overrides all.",
        },
        **schema["properties"],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
