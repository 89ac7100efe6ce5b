"""Progress and warnings on standard error while data is prepared, and the base of all progress bars."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from tqdm import tqdm

from seresnext.errors import for_terminal

_QUIET_SECONDS = 2.0  # Work that takes less time is not reported.
_LINE_SECONDS = 30.0  # the time between two lines, if there is no terminal


class ProgressBar(tqdm):
    """The base of all bars: tqdm without its monitor thread and without its lock between processes.

    Loader workers are forked from this process, so there is no monitor thread. The monitor only helps bars that rarely
    advance. tqdm's own lock needs a semaphore of the system.
    """

    monitor_interval = 0

    def __init__(self, **options: Any) -> None:
        size = shutil.get_terminal_size()  # not 0 x 0, as terminals in some containers report: tqdm draws nothing then
        super().__init__(**options, leave=False, ncols=size.columns, nrows=size.lines)


ProgressBar.set_lock(RLock())


def warn(text: str) -> None:
    """Print a warning. The text may contain untrusted file names."""
    print(f"warning: {for_terminal(text)}", file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Report the progress of long work on standard error: a bar on a terminal, else a line every 30 seconds.

    Yields a function that takes the count of items done since its last call.
    """
    is_terminal, start = sys.stderr.isatty(), time.monotonic()
    reported, done = start, 0

    def advance(count: int) -> None:
        nonlocal done, reported
        done += count
        bar.update(count)
        now = time.monotonic()
        is_due = reported == start or now - reported > _LINE_SECONDS
        if not is_terminal and now - start > _QUIET_SECONDS and is_due:
            reported = now
            print(f"{label}: {100 * done / max(total, 1):.0f} %", file=sys.stderr, flush=True)

    options = {"unit": unit, "unit_scale": True, "delay": _QUIET_SECONDS, "disable": not is_terminal}
    with ProgressBar(desc=label, total=total, **options) as bar:
        yield advance
