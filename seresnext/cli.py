"""The two commands: arguments in, exit code out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from seresnext.distributed import World, open_world
from seresnext.errors import Failure, UsageError, for_terminal
from seresnext.training.stopping import StopRequest


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that one rank prints them and not eight. Options are written out in full."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")


def train_main(arguments: Sequence[str] | None = None, *, stop: StopRequest) -> int:
    """The command `train.py`, until `stop` asks to stop it.

    Returns the exit code: 0 done, or preempted after a save; else as in errors.py.
    """
    return _run(partial(_train, stop=stop), _train_parser(), arguments, _refused_folder(arguments))


def validate_main(arguments: Sequence[str] | None = None) -> int:
    """The command `validate.py`. Returns the exit code."""
    return _run(_validate, _validate_parser(), arguments)


def _refused_folder(arguments: Sequence[str] | None) -> Path | None:
    """The run folder that a start is about, also where the rest of its arguments cannot be used."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--output", type=_folder)
    parser.add_argument("--recipe", type=Path)
    for showing in ("--print-recipe", "--dry-run", "--diff"):
        parser.add_argument(showing, action="store_true")
    try:
        options, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return None
    if options.print_recipe or options.dry_run or options.diff:
        return None
    return options.output or (options.recipe and Path("runs") / options.recipe.stem)


def _folder(text: str) -> Path:
    """Return the path of an option. An empty text is no path, and Path would take it for the working folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of the folder is empty; give one")
    return Path(text)


def _run(
    command: Callable[[argparse.Namespace, World], None],
    parser: _Parser,
    arguments: Sequence[str] | None,
    folder: Path | None = None,
) -> int:
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        with open_world() as world:
            command(world.together(lambda: parser.parse_args(arguments)), world)
    except Failure as failure:
        if not failure.is_said and (is_first or not failure.is_shared):
            rank = "" if failure.is_shared or "RANK" not in os.environ else f" (rank {os.environ['RANK']})"
            print(f"error{rank}: {for_terminal(failure)}", file=sys.stderr, flush=True)
        if folder and is_first and not failure.is_recorded:
            from seresnext.training.run_folder import record_refusal

            record_refusal(folder, str(failure))
        return failure.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was changed since the last save", file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace, world: World, *, stop: StopRequest) -> None:
    # Imported here: `--help` and wrong arguments need not wait for them.
    from seresnext.assemble import dry_run, train
    from seresnext.recipe.load import load_recipe
    from seresnext.recipe.reader import write_scalar
    from seresnext.recipe.show import diff, print_recipe

    world.expect_end(lambda: stop.has_come)
    overrides = list(options.set)
    if options.data is not None:
        overrides.append(f"data.root={write_scalar(options.data)}")
    loaded = world.together(lambda: load_recipe(options.recipe, overrides))
    if options.diff:
        other = world.together(lambda: load_recipe(options.diff))
        if world.is_first:
            print("\n".join(diff(loaded.values, other.values)) or "the two recipes are the same")
    elif options.print_recipe:
        if world.is_first:
            print(print_recipe(loaded), end="")
    elif options.dry_run:
        dry_run(loaded, world, stop)
    else:
        output = options.output or Path("runs") / loaded.name
        allowed = [key for keys in options.allow_changed for key in keys.split(",") if key]
        train(loaded, world, stop, output=output, resume=options.resume, allow_changed=allowed)


def _validate(options: argparse.Namespace, world: World) -> None:
    from seresnext.assemble import validate

    validate(options.checkpoint, world, options.data, options.split, options.weights, options.json)


def _train_parser() -> _Parser:
    parser = _Parser(
        prog="train.py",
        description="Train a model by a recipe. Alone it uses one process; under torchrun, one for each GPU.",
        epilog="The same command again continues the run. See README.md for recipes and the run folder.",
    )
    parser.add_argument("--recipe", required=True, metavar="RECIPE", help="a recipe's path, or its name in recipes/")
    parser.add_argument("--data", metavar="DIR", help="the folder with the splits; the same as data.root")
    parser.add_argument("--output", type=_folder, metavar="DIR", help="the run folder (default: runs/<recipe>)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe; repeatable"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|FILE",
        help="auto: go on from the newest checkpoint of the run folder; never: start anew, setting an older run's "
        "files aside; FILE: go on from this checkpoint",
    )
    parser.add_argument(
        "--allow-changed",
        action="append",
        default=[],
        metavar="KEY,...",
        help="recipe keys (or `dataset`, `classes`) that may differ from those the run was started with",
    )
    parser.add_argument("--print-recipe", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--diff", metavar="RECIPE", help="print how another recipe differs and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, take two steps, estimate the time, leave nothing"
    )
    return parser


def _validate_parser() -> _Parser:
    parser = _Parser(
        prog="validate.py",
        description="Measure top-1 and top-5 accuracy and loss of a checkpoint. All it needs is in the checkpoint; a "
        "published file of weights is recognised.",
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="FILE", help="a checkpoint or a published .pth"
    )
    parser.add_argument("--data", metavar="DIR", help="the folder with the splits (default: as in training)")
    parser.add_argument("--split", metavar="NAME", help="the split (default: as in training, else val)")
    parser.add_argument("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    return parser
