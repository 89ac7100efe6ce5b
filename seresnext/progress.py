"""What is told on standard error while data is prepared: how far it is, and what was found on the way."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock

from tqdm import tqdm

from seresnext.printable import for_terminal

# How long it goes on before it is worth telling, and how often it is then told where there is no terminal.
_QUIET_SECONDS = 2.0
_LINE_SECONDS = 30.0


def warn(text: str) -> None:
    """Say a warning; names of strangers' files may be part of it."""
    print(f"warning: {for_terminal(text)}", file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Tell of long work on standard error: a bar on a terminal, else a line now and then; nothing of a short one.

    Yields what is to be called with the count done since the last call.
    """
    on_terminal, size = sys.stderr.isatty(), shutil.get_terminal_size()
    start = told = time.monotonic()
    done = 0
    with _Tqdm(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=True,
        # tqdm would draw nothing on a terminal that says it is 0 by 0, as some in containers do.
        ncols=size.columns,
        nrows=size.lines,
        delay=_QUIET_SECONDS,
        leave=False,
        disable=not on_terminal,
    ) as bar:

        def advance(count: int) -> None:
            nonlocal done, told
            done += count
            bar.update(count)
            now = time.monotonic()
            if not on_terminal and now - start > _QUIET_SECONDS and (told == start or now - told > _LINE_SECONDS):
                told = now
                print(f"{label}: {100 * done / max(total, 1):.0f} %", file=sys.stderr, flush=True)

        yield advance


class _Tqdm(tqdm):
    # The monitor, a thread, only matters to bars that rarely advance, and loader workers are forked from here.
    monitor_interval = 0


# A lock of this process; tqdm's own reaches over processes and needs a semaphore of the system.
_Tqdm.set_lock(RLock())
