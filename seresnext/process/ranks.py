"""The rank that prints: once for a failure of all ranks, and with the rank for a failure of one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from seresnext.errors import Failure
from seresnext.printable import for_terminal
from seresnext.process.exit import write_error_file

# Seconds for the first rank of a machine to print a failure that all ranks see. Then torchrun ends the other ranks.
_FIRST_RANKS_TIME = 60.0
_CHECK_EVERY = 0.05


def is_first_rank() -> bool:
    """Return whether this process is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def has_one_machine() -> bool:
    """Return whether torchrun started all processes of this run on this machine, or there is only one process."""
    if "RANK" not in os.environ:
        return True
    return _is_of_torchrun() and os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE")


def print_failure(failure: Failure, has_world: bool, is_stopping: Callable[[], bool]) -> None:
    """Print a failure on one of the ranks that have the failure, and write torchrun's error file.

    A failure that all ranks see names no rank. Before the world is open, the first rank of a machine prints, and the
    other ranks wait until torchrun ends them: torchrun ends all ranks when one rank ends.
    """
    message = for_terminal(failure)
    write_error_file(message)
    if has_world:
        prints, names_rank = is_first_rank() or not failure.is_shared, not failure.is_shared
    else:
        prints = os.environ.get("LOCAL_RANK", "0") == "0"
        names_rank = not (prints and is_first_rank())
        if not prints:
            deadline = time.monotonic() + _FIRST_RANKS_TIME if _is_of_torchrun() else 0.0
            while not (prints := time.monotonic() >= deadline) and not is_stopping():
                time.sleep(_CHECK_EVERY)
    if prints and not failure.is_printed:
        rank = f" (rank {os.environ['RANK']})" if names_rank and "RANK" in os.environ else ""
        with suppress(OSError):  # The terminal may be gone.
            print(f"error{rank}: {message}", file=sys.stderr, flush=True)


def _is_of_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
