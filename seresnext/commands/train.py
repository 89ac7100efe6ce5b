"""`seresnext train` and `seresnext check`: train a model by a recipe, and check a run before it starts."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seresnext.arguments import (
    Parser,
    add_device,
    add_recipe,
    count_argument,
    load_run_recipe,
    path_argument,
    price_argument,
    run_folder,
    text_argument,
)
from seresnext.checkpoint.mirror_files import MirrorFiles
from seresnext.errors import UsageError
from seresnext.files import check_data_folder, check_output_file, checkpoint_argument
from seresnext.process.packages import LIGHT_PACKAGES, require_extra, require_packages
from seresnext.process.ranks import is_first_rank
from seresnext.process.signals import StopRequest

if TYPE_CHECKING:
    from seresnext.distributed import World
    from seresnext.recipe import LoadedRecipe, Recipe


def add_arguments(parser: Parser) -> None:
    """Declare the arguments. The help lists the recipes."""
    require_packages(LIGHT_PACKAGES)
    from seresnext.recipe import recipe_names

    add_recipe(parser)
    parser.epilog = f"""examples:
  seresnext train --recipe seresnext50 --data /path/to/imagenet --dry-run
  python -m seresnext.torchrun --nproc_per_node=8 -m seresnext train --recipe seresnext50 --data /path/to/imagenet
  seresnext train --recipe digits --set optimizer.lr=0.1 --set length=20ep
  seresnext train --recipe digits --resume runs/digits/checkpoints/step-00000088.safetensors --output runs/fork \\
    --set optimizer.lr=0.005 --allow-changed optimizer.lr

Alone the command uses one process; under torchrun, one for each GPU. `python train.py` is the same command. The same
command again resumes the run. README.md describes runs and their folders, docs/recipe.md all keys of a recipe.
{textwrap.fill(f"Recipes by name: {', '.join(recipe_names()) or 'none'}.", 119)}"""
    add_resume(parser)
    add = parser.add_argument
    changed = "recipe keys (or `dataset`, `classes`) that may differ from those the run was started with"
    add("--allow-changed", action="append", default=[], metavar="KEY,...", help=changed)
    add_device(parser)
    add("--print-recipe", action="store_true", help="print the resolved recipe and stop")
    add("--diff", type=text_argument, metavar="RECIPE", help="print how another recipe differs and stop")
    profile = "write a torch profiler trace of so many steps to the run folder, from the sixth step of this start on"
    add("--profile", type=count_argument, default=0, metavar="STEPS", help=profile)
    add("--dry-run", action="store_true", help="build everything, take a few steps, estimate the time, leave nothing")


def add_resume(parser: Parser) -> None:
    """Add the option `--resume`."""
    resume = "auto: from the newest checkpoint of the run folder; never: start again, and set older files aside"
    parser.add_argument("--resume", default="auto", type=text_argument, metavar="auto|never|FILE", help=resume)


def prepare(options: Namespace, stop: StopRequest) -> Callable[[World], None] | None:
    """Train a model by a recipe, or resume a run.

    Reads the recipe and returns the training of a rank. For `--print-recipe` and `--diff`, prints and returns None.
    """
    from seresnext.recipe import diff, load_recipe, print_recipe, to_values

    loaded = load_run_recipe(options)
    if options.diff or options.print_recipe:
        if is_first_rank() and options.diff:
            differences = diff(to_values(loaded.recipe), to_values(load_recipe(options.diff).recipe))
            print("\n".join(differences) or "the two recipes are the same")
        elif is_first_rank():
            print(print_recipe(loaded), end="")
        return None
    if options.profile and options.dry_run:
        raise UsageError("--dry-run takes a few steps and traces none; leave out --dry-run or --profile")
    check_start(loaded.recipe, options.resume)
    return partial(_train, options, loaded, stop)


def check_start(recipe: Recipe, resume: str) -> None:
    """Raise a Failure if a package, the folder of the data, or the checkpoint to resume from is missing."""
    require_extra("track", *(name for name in recipe.logging.sinks if name != "tensorboard"))
    if recipe.data.format != "synthetic":
        check_data_folder(recipe.data.root)
    if resume not in ("auto", "never"):
        checkpoint_argument(resume)


def _train(options: Namespace, loaded: LoadedRecipe, stop: StopRequest, world: World) -> None:
    from seresnext.run.dry_run import dry_run
    from seresnext.run.train import train

    world.heartbeat.is_stopping = lambda: stop.has_come
    if options.dry_run:
        dry_run(loaded.recipe, world, stop)
        return
    allowed = [key for keys in options.allow_changed for key in keys.split(",") if key]
    train(
        loaded.recipe,
        world,
        stop,
        output=run_folder(options),
        resume=options.resume,
        allow_changed=allowed,
        profile=options.profile,
    )


def recorded_run(options: Namespace) -> Path | None:
    """Return the folder of the run that the options continue, in which a failure is recorded.

    A status that stayed `preempted` would let a job script queue itself again without end. If a value of an option is
    missing or wrong, the folder is not known.
    """
    is_known = "resume" in options and not (options.print_recipe or options.diff or options.dry_run)
    return run_folder(options) if is_known else None


def check_arguments(parser: Parser) -> None:
    """Declare the arguments of `check`."""
    parser.epilog = """Without --data, synthetic photographs with ImageNet's sizes stand for the images.
docs/check.md has examples and all findings."""
    add_recipe(parser)
    add = parser.add_argument
    add("--full", action="store_true", help="decode all images, and compare all files of both splits")
    add("--strict", action="store_true", help="warnings fail, too")
    add("--price", type=price_argument, metavar="X", help="price of an hour of all machines, for the price of the run")
    add("--json", type=path_argument, metavar="FILE", help="also write the findings to this file")
    add_device(parser)


def check(options: Namespace, stop: StopRequest) -> Callable[[World], None]:
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
