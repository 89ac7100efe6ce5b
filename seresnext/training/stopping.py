"""Being asked to stop: Ctrl-C, a scheduler's SIGTERM, or a cluster's SIGUSR1 before it takes the machine away.

Imports nothing heavy: train.py listens before it imports torch, which takes seconds that a signal may fall into.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

from seresnext.signals import STOP_SIGNALS

# A scheduler that signals every process of a job reaches a worker twice, by itself and through torchrun, within
# milliseconds. A person who presses Ctrl-C again takes longer, in seconds:
_SAME_REQUEST = 0.3
_INTERRUPTED = 130  # The exit code of a program that Ctrl-C ended, as shells have it.


class StopRequest:
    """Remembers that a signal asked this process to stop. The trainer looks at it between steps.

    A handler may run between any two instructions, so it only sets a name; ranks agree on the step to stop at
    elsewhere. A second Ctrl-C ends the process at once, even inside a collective that never returns.

    Until `defer()` is called, Ctrl-C raises KeyboardInterrupt as ever: so early there is nothing to save. Processes
    of torchrun, which have no terminal, defer from the start.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._defers = "RANK" in os.environ
        self._previous = {}
        self._previous_wakeup = -1
        self._pipe = (-1, -1)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def defer(self) -> None:
        """From now on Ctrl-C, too, is a request."""
        self._defers = True

    def __enter__(self) -> StopRequest:
        reader, writer = self._pipe = os.pipe()
        os.set_blocking(writer, False)
        # Handlers wait for the main thread to return to Python; the pipe is written at once.
        self._previous_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        self._previous = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._remember:  # And not somebody else's by now, as `ignore_signals`.
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._pipe[1])  # Ends the thread, which closes the other end.

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and not self._defers:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number).name

    def _watch(self, reader: int) -> None:
        """End the process at the second Ctrl-C; torchrun, which gets it from a terminal, makes a SIGTERM of it."""
        interrupted: float | None = None
        while received := os.read(reader, 1):
            now = time.monotonic()
            if interrupted is None:
                interrupted = now if received[0] == signal.SIGINT and self._defers else None
            elif received[0] in (signal.SIGINT, signal.SIGTERM) and now - interrupted > _SAME_REQUEST:
                os._exit(_INTERRUPTED)
        os.close(reader)
