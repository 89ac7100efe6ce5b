"""The expected failures, each class with an exit code of the commands, and text of strangers for their messages.

The message of a `Failure` states the problem with the place, and the fix. The commands print the message without a
traceback. Every other exception is a defect of this project and keeps the traceback.
"""

from collections.abc import Sequence
from pathlib import Path


class Failure(Exception):
    """An expected failure. The commands print the message and exit with `exit_code`.

    `is_shared`: every rank raises the failure at the same place, so rank 0 alone prints the message. `is_printed`:
    another process prints the message. `is_recorded`: the run folder, if there is one, has the message.
    """

    exit_code = 1
    is_shared = False
    is_printed = False
    is_recorded = False


class UsageError(Failure):
    """A command line, recipe or run folder that cannot be used as given."""

    exit_code = 2


class RecipeError(UsageError):
    """All problems of a recipe, each a line with file, path, value and hint."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        heading = "the recipe has 1 problem" if len(problems) == 1 else f"the recipe has {len(problems)} problems"
        super().__init__("\n  ".join([heading + ":", *problems]))


class DataError(Failure):
    """Images, labels or classes that are missing, unreadable or different from those at the start of the run."""

    exit_code = 3


class CheckpointError(Failure):
    """A file of weights that is damaged, hostile, or does not fit the model."""

    exit_code = 4


class TrainingStopped(Failure):
    """A training that must not continue, for example because the loss is not finite. All ranks raise the failure."""

    is_shared = True


class RankLost(Failure):
    """The loss of another rank, which was killed, froze or failed. This rank cannot continue without that rank.

    `end` is the reason that this rank publishes for the other ranks; empty if the other ranks find the reason.
    """

    end = ""


class OutOfMemory(Failure):
    """A recipe that needs more memory than the device or the host has."""


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """Return the failure for an error that means that memory ran out, or None for another error."""
    text = str(error)
    if not isinstance(error, MemoryError) and not (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    ):
        return None
    return OutOfMemory(
        f"out of memory ({text.splitlines()[0] if text else type(error).__name__}); lower batch.micro_size, which does "
        "not change the size of a step (batch.global_size), or set runtime.grad_checkpointing=true; if the memory of "
        "the host ran out, lower data.workers"
    )


_NO_MEMORY = (
    "out of memory",  # CUDA
    "can't allocate memory",  # the CPU
    "bad_alloc",  # C++
    "STATUS_ALLOC_FAILED",  # cuBLAS, and cuDNN before 9
    "ALLOCATION_FAILED",  # cuDNN
    # cuDNN times its engines. Torch skips those that need too much memory, and raises this if none is left.
    "unable to find an engine to execute this computation",
)


# Text from strangers, made safe for a terminal

_LONGEST_MESSAGE = 100_000  # characters; nobody reads more


def printable(text: object, longest: int = 200) -> str:
    """Return text on one line for a message: at most `longest` characters, control characters as escapes."""
    shown = _escaped(str(text)[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def shorten(text: str) -> str:
    """Return text of a recipe or a command line for a message, at most 60 characters."""
    return printable(text, longest=60)


def shown_path(path: Path) -> str:
    """Return a whole path for a message: the end of a path tells files apart."""
    return printable(path, longest=5000)


def for_terminal(text: object) -> str:
    """Return a message for a terminal or a log, with its lines. Messages quote names from files of strangers."""
    shown = str(text)
    if len(shown) > _LONGEST_MESSAGE:
        shown = f"{shown[:_LONGEST_MESSAGE]}... (and {len(shown) - _LONGEST_MESSAGE:,} more characters)"
    return "\n".join(map(_escaped, shown.split("\n")))


def listed(lines: Sequence[str], most: int = 10) -> list[str]:
    """Return at most `most` lines, and a last line that counts the rest."""
    return [*lines[:most], f"... and {len(lines) - most:,} more"] if len(lines) > most else list(lines)


def _escaped(text: str) -> str:
    """Return text with escapes for unprintable characters, also for those that turn the writing direction."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def as_utf8(text: str) -> str:
    """Return a name with escapes for bytes that are no UTF-8: Linux allows such names, and text files do not."""
    return text.encode("utf-8", "backslashreplace").decode()
