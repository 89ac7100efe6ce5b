"""What can go wrong, by whose fault it is. Each class is one exit code of the commands.

A subclass of `Failure` carries a message for the person at the terminal: what is wrong, where, and what to do. The
commands print it without a traceback. Every other exception is a defect of this project and keeps its traceback.
"""

from __future__ import annotations


class Failure(Exception):
    """An expected failure. The commands print its message and exit with `exit_code`.

    `is_shared`: every rank raises the failure at the same place, so rank 0 alone prints the message. `is_said`: another
    process prints the message. `is_recorded`: the run folder, if there is one, has the message.
    """

    exit_code = 1
    is_shared = False
    is_said = False
    is_recorded = False


class UsageError(Failure):
    """The command line, the recipe or the run folder cannot be used as given."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has problems. All of them, each a line with file, path, value and hint."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        heading = "the recipe has 1 problem" if len(problems) == 1 else f"the recipe has {len(problems)} problems"
        super().__init__("\n  ".join([heading + ":", *problems]))


class DataError(Failure):
    """Images, labels or classes are missing, unreadable or not those the run was started with."""

    exit_code = 3


class CheckpointError(Failure):
    """A file of weights is damaged, hostile, or does not fit the model."""

    exit_code = 4


class TrainingStopped(Failure):
    """Training met something it must not go on from, such as a loss that is not finite. All ranks see it together."""

    is_shared = True


class RankLost(Failure):
    """Another process of the run was killed, froze or failed, and this one cannot go on without it.

    `end` is what the other ranks are to know of how this one ended: nothing, where they see for themselves.
    """

    end = ""


class OutOfMemory(Failure):
    """There is not enough memory for what the recipe asks for, on the device or on the host."""


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """The failure that an error for want of memory stands for, or None."""
    text = str(error)
    wants = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    )
    if not wants:
        return None
    return OutOfMemory(
        f"out of memory ({text.splitlines()[0] if text else type(error).__name__}); lower batch.micro_size, which does "
        "not change the size of a step (batch.global_size), set runtime.grad_checkpointing=true, or, where the host's "
        "memory is short, lower data.workers"
    )


_NO_MEMORY = (
    "out of memory",  # CUDA
    "can't allocate memory",  # the CPU
    "bad_alloc",  # C++
    "STATUS_ALLOC_FAILED",  # cuBLAS, and cuDNN before 9
    "ALLOCATION_FAILED",  # cuDNN
    # When cuDNN times its engines, torch passes over each that memory is too small for, and says this if none is left.
    "unable to find an engine to execute this computation",
)
_LONGEST_TEXT = 100_000  # characters of a message; more tells nobody more


def for_terminal(text: object) -> str:
    """Text for a terminal or a log, line by line as it is: what else would steer a terminal is shown as an escape.

    Messages quote names that files made by strangers have: of classes, of tensors, of the files themselves.
    """
    shown = str(text)
    if len(shown) > _LONGEST_TEXT:
        shown = f"{shown[:_LONGEST_TEXT]}... (and {len(shown) - _LONGEST_TEXT:,} more characters)"
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in shown
    )
