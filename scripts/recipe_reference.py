"""Write docs/recipe.md: the table of all keys of a recipe, from the schema.

python scripts/recipe_reference.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _python  # noqa: F401

from seresnext.process.exit import run_script
from seresnext.recipe.reader import write_value
from seresnext.recipe.show import json_schema

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"


def recipe_reference() -> str:
    """Return every key as a Markdown table: key, type, default, meaning."""
    schema = json_schema()
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        rows += _rows(schema, name, field)
    return "\n".join(rows) + "\n"


def _rows(schema: dict[str, Any], key: str, field: dict[str, Any]) -> Iterator[str]:
    refs = [choice["$ref"] for choice in [field, *field.get("anyOf", [])] if "$ref" in choice]
    if not refs:
        default = f"`{write_value(field['default'])}`" if "default" in field else "(none)"
        default = "(must be given)" if key == "model.name" else default
        yield f"| `{key}` | {_type(field)} | {default} | {field['description']} |"
        return
    if "anyOf" in field:
        yield f"| `{key}` | section or null | `null` | {field['description']} |"
    for name, inner in schema["$defs"][refs[0].rpartition("/")[2]]["properties"].items():
        yield from _rows(schema, f"{key}.{name}", inner)


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{write_value(choice)}`" for choice in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        items = field.get("prefixItems") or [field["items"]]
        count = f"{len(items)} " if "prefixItems" in field else ""
        noun, _, rest = _type(items[0]).partition(" ")
        return f"list of {count}{noun}{'s' if noun == 'number' else ''} {rest}".strip()
    if field["type"] == "object":
        return f"{_type(field['additionalProperties'])} for each name"
    if field["type"] == "string":
        return "duration" if "pattern" in field else "text"
    word = {"integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}[field["type"]]
    bounds = [
        f"{sign} {field[name]:g}" if field[name] < 2**53 else f"{sign} 2^{field[name].bit_length() - 1}"
        for name, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
        if name in field
    ]
    return " ".join([word, ", ".join(bounds)]).strip()


def main() -> None:
    """Replace the table at the end of the page."""
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition("| key |")
    assert mark, "the page has no table"
    PAGE.write_text(head + recipe_reference(), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
