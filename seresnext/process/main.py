"""The start and the end of a command that may be one rank of many."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn

from seresnext.process.exit import INTERRUPTED, ProcessEnd, replace_closed_streams
from seresnext.process.signals import die_with_launcher, ignore_signals
from seresnext.process.stop_request import StopRequest


def run_ranks(command: Callable[[StopRequest], int], *, saves: bool) -> NoReturn:
    """Run a command and end the process with the exit code that the command returns.

    Call this before torch is imported. The import takes seconds, and a signal during the import must find a handler.
    `saves`: a stop signal becomes a request, and the command saves and returns. Otherwise a signal ends the process.
    """
    die_with_launcher()
    gc.disable()  # Scans of imported modules took 25 % of the start. Training and validation enable the collector.
    replace_closed_streams()
    end = ProcessEnd()
    with ExitStack() as stack:
        stop = StopRequest()
        if saves:
            stack.enter_context(stop)
        try:
            code = command(stop)
        except KeyboardInterrupt:
            code = INTERRUPTED
        if saves:
            ignore_signals()
    end.exit(code)
