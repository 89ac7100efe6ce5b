"""Requests to stop a training by one of STOP_SIGNALS: Ctrl-C, a scheduler's SIGTERM, SIGHUP of a closed terminal."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from types import FrameType, TracebackType

from seresnext.process.exit import INTERRUPTED
from seresnext.process.signals import STOP_SIGNALS, in_critical_section

# A signal that was ignored at the start stays ignored (SIGHUP under nohup), with two exceptions: a shell ignores Ctrl-C
# for background commands of a script, and a scheduler sends SIGTERM on purpose.
_NEVER_IGNORED = (signal.SIGINT, signal.SIGTERM)
# Seconds within which a second signal counts as the same request. torchrun may pass on a signal that all processes got
# already; a person who presses Ctrl-C again takes longer.
_SAME_REQUEST = 0.3
# Seconds after the first signal. A process of torchrun that has not read the request by then is stuck.
_STUCK = 5.0
_CHECK_EVERY = 0.1


class StopRequest:
    """The request of a signal to stop this process. The trainer reads the request between steps.

    A handler may run between any two instructions, so the handler only sets a name. The ranks agree elsewhere on the
    step to stop at. A second Ctrl-C ends the process at once, even inside a collective that never returns. A SIGTERM
    after a Ctrl-C leaves time for a save: schedulers send first one signal, then the other.

    torchrun turns the second Ctrl-C into a SIGTERM, and may pass on the first Ctrl-C once more. Under torchrun the
    second signal therefore ends only a stuck process, which does not read the request within `_STUCK` seconds.

    Until `defer()` is called, Ctrl-C raises KeyboardInterrupt, since there is nothing to save yet. Processes of
    torchrun have no terminal and defer from the start.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.has_come = False  # for other threads: true also while the main thread is stuck
        self._is_read = False
        self._of_torchrun = self._defers = "RANK" in os.environ
        self._previous = {}
        self._previous_wakeup = -1
        self._pipe = (-1, -1)

    @property
    def requested(self) -> bool:
        """Whether a signal has come. For the code that acts on the request: a process that asks is not stuck."""
        self._is_read = self.signal is not None
        return self._is_read

    def defer(self) -> None:
        """Let Ctrl-C be a request from now on."""
        self._defers = True

    def end(self) -> None:
        """Let signals end the process again, as before this request. Raises KeyboardInterrupt if one has come."""
        self._restore()
        if self.signal:
            raise KeyboardInterrupt

    def __enter__(self) -> StopRequest:
        reader, writer = self._pipe = os.pipe()
        os.set_blocking(writer, False)
        # Python calls handlers once the main thread returns to Python. The pipe is written at once.
        self._previous_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        self._previous = {
            number: signal.signal(number, self._remember)
            for number in STOP_SIGNALS
            if number in _NEVER_IGNORED or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()

    def _restore(self) -> None:
        self._is_read = True
        if self._pipe[1] < 0:
            return
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._remember:  # `ignore_signals` may have replaced the handler.
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._pipe[1])  # Ends the thread, which closes the other end.
        self._pipe = (-1, -1)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and not self._defers:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number).name

    def _watch(self, reader: int) -> None:
        """Read each signal at once. End the process at the second Ctrl-C, or under torchrun if the process is stuck."""
        interrupted: float | None = None  # the time of the first Ctrl-C
        stuck_since: float | None = None  # set by the second signal, while the request is not read
        while True:
            if select.select([reader], [], [], None if stuck_since is None else _CHECK_EVERY)[0]:
                received = os.read(reader, 1)
                if not received:
                    break
                now, number = time.monotonic(), received[0]
                if number not in STOP_SIGNALS:  # Torch has a handler for the end of a loader worker.
                    continue
                self.has_come = True
                if interrupted is None:
                    interrupted = now if number == signal.SIGINT and self._defers else None
                elif now - interrupted > _SAME_REQUEST and number in (signal.SIGINT, signal.SIGTERM):
                    if self._of_torchrun:
                        stuck_since = stuck_since or interrupted
                    elif number == signal.SIGINT:
                        os._exit(INTERRUPTED)
            if self._is_read:
                stuck_since = None
            elif stuck_since and in_critical_section():  # A process that writes is not stuck, and may save once more.
                stuck_since = time.monotonic()
            elif stuck_since and time.monotonic() - stuck_since >= _STUCK:
                os._exit(INTERRUPTED)
        os.close(reader)
