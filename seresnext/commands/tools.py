"""The commands of one process that read weights, runs and recipes."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from seresnext.arguments import Parser
from seresnext.paths import path_argument


def average_arguments(parser: Parser) -> None:
    """Declare the arguments of `average`."""
    add = parser.add_argument
    add("checkpoints", type=path_argument, nargs="+", metavar="CHECKPOINT")
    add("--output", type=path_argument, required=True, metavar="FILE", help="a new file, *.safetensors")
    add("--weights", choices=("auto", "model", "ema"), default="auto", help="default: those that chose `best`")


def average(options: Namespace) -> None:
    """Average the weights of checkpoints of one recipe into one file."""
    from seresnext.run.average import average_checkpoints

    average_checkpoints(options)


def models_arguments(parser: Parser) -> None:
    """Declare the arguments of `models`."""
    parser.add_argument("--index", action="store_true", help="print the model index of the published models as YAML")


def models(options: Namespace) -> None:
    """Print the table of the models."""
    from seresnext.models.index import print_index, print_models

    print_index() if options.index else print_models()


def recipe_arguments(parser: Parser) -> None:
    """Declare the arguments of `recipe`."""
    add = parser.add_argument
    add("--reference", action="store_true", help="print every key as a Markdown table instead")
    add("--output", type=path_argument, default=Path("recipes/schema.json"), help="default: %(default)s")


def recipe(options: Namespace) -> None:
    """Write the JSON schema of recipes, which editors use, or print the reference of all keys."""
    from seresnext.recipe.show import json_schema, recipe_reference

    if options.reference:
        print(recipe_reference(), end="")
        return
    options.output.write_text(json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {options.output}")
