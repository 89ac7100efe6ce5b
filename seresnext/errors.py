"""What can go wrong, by whose fault it is. Each class is one exit code of the commands.

A subclass of `Failure` carries a message for the person at the terminal: what is wrong, where, and what to do. The
commands print it without a traceback. Every other exception is a defect of this project and keeps its traceback.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path


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
LIGHT_PACKAGES = ("pydantic", "yaml")
"""The packages that reading a recipe needs."""

PACKAGES = (*LIGHT_PACKAGES, "numpy", "PIL", "safetensors", "tensorboard", "torch", "torchvision", "tqdm")
"""The packages that everything else needs, without the extras."""

_OLDEST_PYTHON = (3, 11)


def require_packages(names: Sequence[str] = PACKAGES) -> None:
    """Raise UsageError if this Python is too old, or lacks one of the packages. Import no package."""
    is_old = sys.version_info < _OLDEST_PYTHON
    if not is_old and all(map(importlib.util.find_spec, names)):
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    found = f"is Python {sys.version.split()[0]}, older than 3.11" if is_old else f"has no {', '.join(missing)}"
    venv = Path(__file__).parents[1] / ".venv"
    activate = venv / "bin" / "activate"
    is_other = activate.exists() and Path(sys.prefix).resolve() != venv.resolve()
    cure = f"run `source {activate}`" if is_other else "run `bash scripts/test.sh`, which makes .venv with all packages"
    raise UsageError(f"{sys.executable} {found}; {cure}")


_LOST_A_SLASH = re.compile(r"(https?|s3|gs|hf|ftp):/(?!/)")


def address_in(path: str | Path) -> str | None:
    """Return the address, such as `https://host/file`, where a path should be; None for a path.

    A `Path` keeps one of the two slashes; this function restores the other.
    """
    text = _LOST_A_SLASH.sub(r"\1://", str(path), count=1)
    return text if "://" in text else None


def expand_home(path: str | Path) -> Path:
    """Return the path with a leading `~` or `~user` replaced by the home folder, if the user exists."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib raises RuntimeError for an unknown user)


def path_argument(text: str) -> Path:
    """Return the path in an argument of a command, with `~` expanded: a `type` for argparse.

    Raises ArgumentTypeError for an address, which `Path` would take for a local folder.
    """
    if address := address_in(text):
        raise argparse.ArgumentTypeError(
            f"{address} is an address, not a path on this machine; download the file, and give the path"
        )
    return expand_home(text)
