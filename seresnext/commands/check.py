"""`seresnext check`: check a run before it starts."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING

from seresnext.arguments import Parser, add_device, add_recipe, load_run_recipe, price_argument, run_folder
from seresnext.checkpoint.mirror_files import MirrorFiles
from seresnext.files import check_output_file
from seresnext.paths import check_data_folder, path_argument
from seresnext.process.packages import require_extra
from seresnext.process.stop_request import StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from seresnext.distributed import World
    from seresnext.recipe import LoadedRecipe


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = """Without --data, synthetic photographs with ImageNet's sizes stand for the images.
docs/check.md has examples and all findings."""
    add_recipe(parser)
    add = parser.add_argument
    add("--full", action="store_true", help="decode all images, and compare all files of both splits")
    add("--strict", action="store_true", help="warnings fail, too")
    add("--price", type=price_argument, metavar="X", help="price of an hour of all machines, for the price of the run")
    add("--json", type=path_argument, metavar="FILE", help="also write the findings to this file")
    add_device(parser)


def prepare(options: Namespace, stop: StopRequest) -> Callable[[World], None]:
    """Check a run before it starts: data, recipe, devices, disk, time and price.

    Reads the recipe and returns the check of a rank.
    """
    loaded = load_run_recipe(options)
    if mirror := loaded.recipe.checkpoint.mirror:
        MirrorFiles(mirror)
    require_extra("track", *(name for name in loaded.recipe.logging.sinks if name != "tensorboard"))
    if options.data is not None:
        check_data_folder(options.data)
    if options.json is not None:
        check_output_file(options.json, "--json")
    return partial(_check, options, loaded)


def _check(options: Namespace, loaded: LoadedRecipe, world: World) -> None:
    from seresnext.check.checking import check

    named = {name: getattr(options, name) for name in ("full", "strict", "price", "json")}
    has_data = loaded.origins["data.root"] == "--set"
    check(loaded.recipe, world, run_folder(options), has_data, **named)
