"""`seresnext check`: check a run before it starts."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seresnext.arguments import Parser, add_device, key_hints, price_argument
from seresnext.paths import check_data_folder, path_argument, text_argument
from seresnext.process.stop_request import StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from seresnext.distributed import World
    from seresnext.recipe import LoadedRecipe


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.hint = key_hints
    parser.epilog = """examples:
  seresnext check --recipe seresnext50 --data /path/to/imagenet --price 24
  python -m seresnext.torchrun --nproc_per_node=8 -m seresnext check --recipe seresnext50

Without --data, synthetic photographs of ImageNet's size stand for the images. docs/check.md describes the findings."""
    add = parser.add_argument
    add("--recipe", required=True, type=text_argument, metavar="RECIPE", help="a recipe's path, or a recipe's name")
    add("--data", type=text_argument, metavar="DIR", help="the folder with the splits; the same as data.root")
    add("--output", type=path_argument, metavar="DIR", help="the run folder of the run (default: runs/<recipe>)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe; repeatable")
    add("--full", action="store_true", help="decode all images, and compare all files of the splits")
    add("--strict", action="store_true", help="fail after warnings, too")
    add("--price", type=price_argument, metavar="X", help="price of an hour of all machines, for the cost of the run")
    add("--json", type=path_argument, metavar="FILE", help="also write the findings to this file")
    add_device(parser)


def prepare(options: Namespace, stop: StopRequest) -> Callable[[World], None]:
    """Check a run before the start: data, recipe, devices, disk, time and price.

    Reads the recipe and returns the check of a rank.
    """
    from seresnext.recipe.load import load_recipe
    from seresnext.recipe.reader import write_scalar

    data = [] if options.data is None else [f"data.root={write_scalar(options.data)}"]
    loaded = load_recipe(options.recipe, options.set + data)
    if options.data is not None:
        check_data_folder(options.data)
    return partial(_check, options, loaded)


def _check(options: Namespace, loaded: LoadedRecipe, world: World) -> None:
    from seresnext.check.checking import CheckSettings, check

    settings = CheckSettings(
        output=options.output or Path("runs") / Path(options.recipe).stem,
        has_data=loaded.origins["data.root"] == "--set",
        full=options.full,
        strict=options.strict,
        price=options.price,
        json=options.json,
    )
    check(loaded.recipe, world, settings)
