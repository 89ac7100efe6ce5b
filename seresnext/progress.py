"""Progress and warnings on standard error while data is prepared, and the base of all progress bars."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock

from tqdm import tqdm

from seresnext.printable import for_terminal

_QUIET_SECONDS = 2.0  # Work that takes less time is not reported.


class ProgressBar(tqdm):
    """The base of all bars: tqdm without its monitor thread and without its lock between processes.

    Loader workers are forked from this process, so there is no monitor thread. The monitor only helps bars that rarely
    advance. tqdm's own lock needs a semaphore of the system.
    """

    monitor_interval = 0


ProgressBar.set_lock(RLock())


def warn(text: str) -> None:
    """Print a warning. The text may contain untrusted file names."""
    print(f"warning: {for_terminal(text)}", file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str = "") -> Iterator[Callable[[int], object]]:
    """Report the progress of work of more than 2 seconds on standard error, in a file or a pipe every 30 seconds.

    Yields a function that takes the count of items done since its last call.
    """
    size = shutil.get_terminal_size()
    with ProgressBar(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=True,
        # Terminals in some containers report 0 x 0, and with that size tqdm draws nothing.
        ncols=size.columns,
        nrows=size.lines,
        mininterval=0.1 if sys.stderr.isatty() else 30,
        delay=_QUIET_SECONDS,
        leave=False,
    ) as bar:
        yield bar.update
