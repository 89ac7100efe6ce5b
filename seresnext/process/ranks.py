"""The start and the end of a command that may be one rank of many, and the rank that prints a failure."""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import NoReturn

from seresnext.errors import Failure, for_terminal
from seresnext.process.exit import INTERRUPTED, ProcessEnd, replace_closed_streams, write_error_file
from seresnext.process.signals import StopRequest, die_with_launcher, ignore_signals

# Seconds for the first rank of a machine to print a failure that all ranks see. Then torchrun ends the other ranks.
_FIRST_RANKS_TIME = 60.0
_CHECK_EVERY = 0.05


def run_ranks(command: Callable[[StopRequest], int], *, saves: bool) -> NoReturn:
    """Run a command and end the process with the exit code that the command returns.

    Call this before torch is imported. The import takes seconds, and a signal during the import must find a handler.
    `saves`: a stop signal becomes a request, and the command saves and returns. Otherwise a signal ends the process.
    """
    die_with_launcher()
    gc.disable()  # Scans of imported modules took 25 % of the start. Training and validation enable the collector.
    replace_closed_streams()
    end = ProcessEnd()
    stop = StopRequest()
    with stop if saves else nullcontext():
        try:
            code = command(stop)
        except KeyboardInterrupt:
            code = INTERRUPTED
        if saves:
            ignore_signals()
    end.exit(code)


def is_first_rank() -> bool:
    """Return whether this process is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def has_one_machine() -> bool:
    """Return whether torchrun started all processes of this run on this machine, or there is only one process."""
    sizes = [os.environ.get(name) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")]
    return "RANK" not in os.environ or (_is_of_torchrun() and sizes[0] == sizes[1])


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


@contextmanager
def exiting_at_interrupt() -> Iterator[None]:
    """End this process at Ctrl-C: nothing has begun, so nothing is lost. Under torchrun, training remembers Ctrl-C.

    KeyboardInterrupt in the middle of an import could appear as another error.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        with suppress(OSError):  # The terminal may be gone.
            if is_first_rank():
                os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    remembers = "RANK" in os.environ and before is not signal.default_int_handler
    if not remembers and before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_of_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
