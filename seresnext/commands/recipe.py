"""`seresnext recipe`: write the schema that editors use, or print the reference of the keys."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from seresnext.arguments import Parser
from seresnext.paths import path_argument
from seresnext.process.packages import LIGHT_PACKAGES, require_packages


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("--reference", action="store_true", help="print every key as a Markdown table instead")
    parser.add_argument(
        "--output", type=path_argument, default=Path("recipes/schema.json"), help="default: %(default)s"
    )


def run(options: Namespace) -> None:
    """Write the schema, or print the reference."""
    require_packages(LIGHT_PACKAGES)
    from seresnext.recipe.show import json_schema, recipe_reference

    if options.reference:
        print(recipe_reference(), end="")
        return
    options.output.write_text(json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {options.output}")
