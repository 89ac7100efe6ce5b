"""The two commands: arguments in, exit code out.

The import of torch takes seconds in each process. Checks that need no torch come first: arguments, recipe, missing
data.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from seresnext.errors import (
    LIGHT_PACKAGES,
    CheckpointError,
    DataError,
    Failure,
    UsageError,
    address_in,
    expand_home,
    path_argument,
    require_packages,
)
from seresnext.printable import for_terminal
from seresnext.process.exit import write_error_file
from seresnext.process.stop_request import StopRequest

if TYPE_CHECKING:
    from seresnext.distributed import World
    from seresnext.recipe import LoadedRecipe

# Seconds for the first rank of a machine to print a failure that all ranks see. Then torchrun ends the other ranks.
_FIRST_RANKS_TIME = 60.0
_LOOK = 0.05


@dataclass(frozen=True)
class _Job:
    """The work to do once torch is imported, and the device for the work."""

    do: Callable[[World], None]
    device: str


class _Parser(argparse.ArgumentParser):
    """A parser that raises errors, so that one rank prints an error and not eight. Options cannot be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")

    def print_help(self, file: Any = None) -> None:
        if _is_first():
            super().print_help(file)


def train_main(arguments: Sequence[str] | None = None, *, stop: StopRequest) -> int:
    """Run the command `train.py`, to the end or until `stop` has a request.

    Returns the exit code: 0 done, or preempted after a save; else as in errors.py.
    """
    prepare = partial(_prepare_training, arguments, stop)
    return _run(prepare, _refused_folder(arguments), is_stopping=lambda: stop.has_come)


def validate_main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `validate.py`. Returns the exit code."""
    return _run(partial(_prepare_validation, arguments))


def _refused_folder(arguments: Sequence[str] | None) -> Path | None:
    """Return the run folder of a start, also if other arguments cannot be used."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--output", type=_path)
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


# ------------------------------------------------------------------------------------------------ beginning and end


def _run(
    prepare: Callable[[], _Job | None], folder: Path | None = None, is_stopping: Callable[[], bool] = lambda: False
) -> int:
    """Prepare a job on each rank, without torch. Then do the job on all ranks together. Return the exit code."""
    have_met = False
    try:
        job, unprepared = None, None
        with _exiting_at_interrupt():
            try:
                job = prepare()
                if job is None:
                    return 0
            except Failure as failure:
                if _has_one_machine():
                    raise
                unprepared = failure  # Other machines may have no failure, and must not wait for this machine.
            require_packages()
            import seresnext.run.train
            import seresnext.run.validate  # noqa: F401
            from seresnext.distributed import open_world
        gc.freeze()  # The garbage collector can ignore the imported objects.
        with open_world(job.device if job else "auto") as world:
            have_met = True
            world.together(lambda: _raise(unprepared))
            assert job is not None
            job.do(world)
    except Failure as failure:
        _report(failure, have_met, is_stopping)
        if folder and folder.is_dir() and _is_first() and not failure.is_recorded:
            with suppress(ImportError):  # This Python may lack torch.
                from seresnext.run.folder import record_refusal

                record_refusal(folder, str(failure))
        return failure.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was changed since the last save", file=sys.stderr)
        return 130
    except SystemExit as end:  # After --help.
        return int(end.code or 0)
    except Exception:
        write_error_file(traceback.format_exc())
        raise
    return 0


def _raise(failure: Failure | None) -> None:
    if failure:
        raise failure


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _has_one_machine() -> bool:
    """Return whether torchrun started all processes of this run on this machine, or there is only one process."""
    if "RANK" not in os.environ:
        return True
    return _is_of_torchrun() and os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE")


def _is_of_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def _exiting_at_interrupt() -> Iterator[None]:
    """End this process at Ctrl-C: no work has begun, so no work is lost. Under torchrun, training remembers Ctrl-C.

    KeyboardInterrupt in the middle of an import could appear as another error.
    """
    before = signal.getsignal(signal.SIGINT)
    remembers = "RANK" in os.environ and before is not signal.default_int_handler
    if remembers or before == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _report(failure: Failure, have_met: bool, is_stopping: Callable[[], bool]) -> None:
    """Print a failure on one of the ranks that have the failure, and write torchrun's error file.

    A failure that all ranks see blames no rank. Before the ranks have met, the first rank of a machine prints, and the
    other ranks wait: torchrun ends all ranks when one rank ends.
    """
    message = for_terminal(failure)
    write_error_file(message)
    if have_met:
        prints, names_rank = _is_first() or not failure.is_shared, not failure.is_shared
    else:
        prints = os.environ.get("LOCAL_RANK", "0") == "0"
        names_rank = not (prints and _is_first())
        if not prints:
            deadline = time.monotonic() + _FIRST_RANKS_TIME if _is_of_torchrun() else 0.0
            while not (prints := time.monotonic() >= deadline) and not is_stopping():
                time.sleep(_LOOK)
    if prints and not failure.is_said:
        rank = f" (rank {os.environ['RANK']})" if names_rank and "RANK" in os.environ else ""
        with suppress(OSError):  # The terminal may be gone.
            print(f"error{rank}: {message}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ train.py


def _prepare_training(arguments: Sequence[str] | None, stop: StopRequest) -> _Job | None:
    require_packages(LIGHT_PACKAGES)
    from seresnext.checkpoint.argument import checkpoint_argument
    from seresnext.recipe.load import load_recipe
    from seresnext.recipe.reader import write_scalar
    from seresnext.recipe.show import diff, print_recipe

    options = _parse(_train_parser(), arguments, _key_hints)
    overrides = list(options.set)
    if options.data is not None:
        overrides.append(f"data.root={write_scalar(options.data)}")
    loaded = load_recipe(options.recipe, overrides)
    if options.diff:
        differences = diff(loaded.values, load_recipe(options.diff).values)
        if _is_first():
            print("\n".join(differences) or "the two recipes are the same")
        return None
    if options.print_recipe:
        if _is_first():
            print(print_recipe(loaded), end="")
        return None
    if loaded.recipe.data.format != "synthetic":
        _check_is_there(loaded.recipe.data.root)
    if options.resume not in ("auto", "never"):
        checkpoint_argument(options.resume)
    return _Job(partial(_train, options, loaded, stop), options.device)


def _train(options: argparse.Namespace, loaded: LoadedRecipe, stop: StopRequest, world: World) -> None:
    from seresnext.run.train import dry_run, train

    world.set_stop_check(lambda: stop.has_come)
    if options.dry_run:
        dry_run(loaded, world, stop)
        return
    output = options.output or Path("runs") / loaded.name
    allowed = [key for keys in options.allow_changed for key in keys.split(",") if key]
    train(loaded, world, stop, output=output, resume=options.resume, allow_changed=allowed)


def _train_parser() -> _Parser:
    from seresnext.recipe.files import recipe_names

    parser = _Parser(
        prog="train.py",
        description="Train a model by a recipe. Alone it uses one process; under torchrun, one for each GPU.",
        epilog=f"""examples:
  python train.py --recipe seresnext50 --data /path/to/imagenet --dry-run
  torchrun --nproc_per_node=8 train.py --recipe seresnext50 --data /path/to/imagenet --output runs/first
  python train.py --recipe digits --set optimizer.lr=0.1 --set length=20ep
  python train.py --recipe seresnext50 --diff seresnext101

The same command again resumes the run. README.md describes runs and their folders, docs/recipe.md all keys of a recipe.
{textwrap.fill(f"Recipes by name: {', '.join(recipe_names()) or 'none'}.", 119)}""",
    )
    parser.add_argument(
        "--recipe", required=True, type=_text, metavar="RECIPE", help="a recipe's path, or its name in recipes/"
    )
    parser.add_argument("--data", type=_text, metavar="DIR", help="the folder with the splits; the same as data.root")
    parser.add_argument("--output", type=_path, metavar="DIR", help="the run folder (default: runs/<recipe>)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe; repeatable"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        type=_text,
        metavar="auto|never|FILE",
        help="auto: resume from the newest checkpoint of the run folder; never: start again, and set an older run's "
        "files aside; FILE: resume from this checkpoint",
    )
    parser.add_argument(
        "--allow-changed",
        action="append",
        default=[],
        metavar="KEY,...",
        help="recipe keys (or `dataset`, `classes`) that may differ from those the run was started with",
    )
    _add_device(parser)
    parser.add_argument("--print-recipe", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--diff", type=_text, metavar="RECIPE", help="print how another recipe differs and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, take two steps, estimate the time, leave nothing"
    )
    return parser


# ------------------------------------------------------------------------------------------------ validate.py


def _prepare_validation(arguments: Sequence[str] | None) -> _Job:
    options = _parse(_validate_parser(), arguments)
    # For a published file (.pth) a later message has the address.
    if not os.path.lexists(options.checkpoint) and options.checkpoint.suffix != ".pth":
        raise CheckpointError(f"{options.checkpoint} cannot be opened: no such file; give one with --checkpoint FILE")
    if options.data is not None:
        _check_is_there(options.data)
    return _Job(partial(_validate, options), options.device)


def _validate(options: argparse.Namespace, world: World) -> None:
    from seresnext.run.validate import validate

    validate(options.checkpoint, world, options.data, options.split, options.weights, options.json)


def _validate_parser() -> _Parser:
    parser = _Parser(
        prog="validate.py",
        description="Measure top-1 and top-5 accuracy and loss of a checkpoint. The checkpoint has all that is needed; "
        "a\npublished file of weights is recognised.",
        epilog="""examples:
  python validate.py --checkpoint runs/first/checkpoints/best.safetensors
  python validate.py --checkpoint se_resnext50_32x4d-a260b3a4.pth --data /path/to/imagenet --json result.json

README.md describes checkpoints and published weights, docs/recipe.md the recipe that a checkpoint has in it.""",
    )
    parser.add_argument(
        "--checkpoint", required=True, type=_path, metavar="FILE", help="a checkpoint or a published .pth"
    )
    parser.add_argument(
        "--data", type=_text, metavar="DIR", help="the folder with the splits (default: as in training)"
    )
    parser.add_argument("--split", type=_text, metavar="NAME", help="the split (default: as in training, else val)")
    parser.add_argument("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    parser.add_argument("--json", type=_path, metavar="FILE", help="also write the result to this file")
    _add_device(parser)
    return parser


# ------------------------------------------------------------------------------------------------ arguments


def _parse(
    parser: _Parser, arguments: Sequence[str] | None, hints: Callable[[list[str]], str] = lambda words: ""
) -> argparse.Namespace:
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hints(unknown)}")
    return options


def _key_hints(words: list[str]) -> str:
    """Return the options that set the keys of a recipe that unknown arguments mean, as `--lr 0.3`."""
    from seresnext.recipe.explain import COMMON_NAMES, all_keys

    keys = [key for key, is_section in all_keys().items() if not is_section]
    hints = []
    for place, word in enumerate(words):
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and not word.startswith("-"):
            continue
        name = name.replace("-", "_")
        common = COMMON_NAMES.get(name)
        meant = [common] if common in keys else [key for key in keys if name in (key, key.rpartition(".")[2])]
        if len(meant) != 1:
            continue
        if not equals:
            following = words[place + 1 : place + 2]
            value = following[0] if following and not following[0].startswith("--") else "VALUE"
        if meant[0] in ("length", "schedule.warmup") and value.isdecimal():
            value += "st" if "step" in name else "ep"
        hints.append(f"--set {meant[0]}={value}")
    return f"; write keys of the recipe as {' '.join(hints)}" if hints else ""


def _check_is_there(root: str) -> None:
    """Raise DataError if the folder of the data does not exist. An address is checked later."""
    if not address_in(root) and not os.path.isdir(root):  # noqa: PTH112 (raises nothing)
        raise DataError(f"there is no folder {root}; give the folder that holds train/ and val/ with --data DIR")


def _path(text: str) -> Path:
    """Return the path that an option gives. Refuse an empty text, which Path would take for the working folder."""
    return path_argument(_not_empty(text))


def _text(text: str) -> str:
    """Return the text of an option: a name, a path or an address. In a path `~` is expanded."""
    return str(expand_home(text)) if _not_empty(text).startswith("~") else text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty; give a value, or omit the option")
    return text


def _add_device(parser: _Parser) -> None:
    parser.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="cpu: use the CPU also where there are GPUs"
    )
