"""Arguments of the commands: a parser whose errors one rank prints, and hints for options of other tools."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from seresnext.errors import UsageError, shorten
from seresnext.files import expand_home, is_remote
from seresnext.process.ranks import is_first_rank

if TYPE_CHECKING:
    from seresnext.recipe import LoadedRecipe


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError. Options cannot be abbreviated. An error adds `hint` to unknown words."""

    hint = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse(self, words: Sequence[str], options: argparse.Namespace | None = None) -> argparse.Namespace:
        """Set the options and return them. Raises UsageError that names all unknown words, and SystemExit after --help.

        `options` gets the known options also if a word is unknown, and nothing if a value is missing or wrong.
        """
        known, unknown = self.parse_known_args(words)
        options = argparse.Namespace() if options is None else options
        vars(options).update(vars(known))
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self.hint}")
        return options

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")

    def print_help(self, file: Any = None) -> None:
        if is_first_rank():
            super().print_help(file)


def add_recipe(parser: Parser) -> None:
    """Add the options of a run: `--recipe`, `--data`, `--output` and `--set`."""
    add = parser.add_argument
    add("--recipe", required=True, type=text_argument, metavar="RECIPE", help="a recipe's path, or a recipe's name")
    add("--data", type=text_argument, metavar="DIR", help="the folder with the splits; the same as data.root")
    add("--output", type=path_argument, metavar="DIR", help="the run folder (default: runs/<recipe>)")
    add_set(parser)


def add_set(parser: Parser) -> None:
    """Add the option `--set`."""
    parser.hint = "; give a key of the recipe as --set KEY=VALUE, such as --set optimizer.lr=0.4"
    settings = "change a value of the recipe; repeatable"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=settings)


def load_run_recipe(options: argparse.Namespace) -> LoadedRecipe:
    """Return the recipe that the options of `add_recipe` name. Raises RecipeError."""
    from seresnext.recipe import load_recipe, write_scalar

    data = [] if options.data is None else [f"data.root={write_scalar(options.data)}"]
    return load_recipe(options.recipe, options.set + data)


def run_folder(options: argparse.Namespace) -> Path:
    """Return the run folder that the options of `add_recipe` name."""
    return options.output or Path("runs") / Path(options.recipe).stem


def add_device(parser: Parser) -> None:
    """Add the option `--device`."""
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: use no GPU")


def path_argument(text: str) -> Path:
    """Return the path in an argument of a command, with `~` expanded: a `type` for argparse.

    Raises ArgumentTypeError for an empty text, an address, and a path that the system refuses, such as a path inside a
    folder of another user. Methods of `Path` raise OSError for such a path.
    """
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"{text} is an address, not a path; download the file, and give the path")
    path = Path(text_argument(text))
    try:
        path.exists()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{shorten(text)}: {error.strerror}; give another path") from None
    return path


def text_argument(text: str) -> str:
    """Return the text of an argument: a name, a path or an address. In a path `~` is expanded.

    Raises ArgumentTypeError for an empty text.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty; give a value, or omit the option")
    return str(expand_home(text)) if text.startswith("~") else text


def table_argument(text: str) -> Path:
    """Return the path of a table in a word of the command line. The ending of the name gives the format."""
    path = path_argument(text)
    if path.suffix not in (".csv", ".parquet"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .parquet or .csv")
    return path


def _number(kind: Callable[[str], Any], is_valid: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    """Return a type of argparse that reads a number."""

    def read(text: str) -> Any:
        with suppress(ValueError):
            value = kind(text)
            if is_valid(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return read


count_argument = _number(int, lambda value: value >= 1, "a whole number of at least 1")
quality_argument = _number(int, lambda value: 1 <= value <= 95, "a whole number from 1 to 95")
folds_argument = _number(int, lambda value: 2 <= value <= 20, "a whole number from 2 to 20")
# These have the limits of data.workers, data.image_size and evaluation.crop_pct.
workers_argument = _number(int, lambda value: 0 <= value <= 256, "a whole number from 0 to 256")
side_argument = _number(int, lambda value: 16 <= value <= 4096, "a whole number from 16 to 4096")
share_argument = _number(float, lambda value: 0.1 <= value <= 1, "a number from 0.1 to 1")
price_argument = _number(float, lambda value: 0 < value < float("inf"), "a number above 0")
