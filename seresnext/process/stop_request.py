"""Requests to stop by any of STOP_SIGNALS: Ctrl-C, SIGTERM of a scheduler, SIGHUP of a closed terminal, and others.

Imports nothing heavy: train.py listens before it imports torch, which takes seconds that a signal may fall into.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

from seresnext.process.signals import STOP_SIGNALS, in_critical_section

# A signal that was ignored at the start stays ignored, as SIGHUP under nohup. These two signals are exceptions: a shell
# ignores Ctrl-C for background commands of a script, and a scheduler sends SIGTERM on purpose.
_NEVER_IGNORED = (signal.SIGINT, signal.SIGTERM)
# A signal to all processes of a group may reach one twice, by itself and through another, within milliseconds. A person
# who presses Ctrl-C again takes longer, in seconds:
_SAME_REQUEST = 0.3
# How long after the first signal a process of torchrun that is urged may take, in seconds, to look whether to stop.
_STUCK = 5.0
_LOOK = 0.1
_INTERRUPTED = 130  # The exit code of a program that Ctrl-C ended, as shells have it.


class StopRequest:
    """Remembers that a signal asked this process to stop. The trainer looks at it between steps.

    A handler may run between any two instructions, so it only sets a name; ranks agree on the step to stop at
    elsewhere. A second Ctrl-C ends the process at once, even inside a collective that never returns. A SIGTERM that
    follows a Ctrl-C does not: schedulers send first the one, then the other, to have the run saved.

    Under torchrun the two cannot be told apart. Of the second Ctrl-C torchrun makes a SIGTERM, and a first one that all
    processes got it may pass on late. So what comes second ends a process there only if that is stuck: if it does not
    look at the request within a few seconds of the first. One that does is about to save.

    A signal that was ignored when the process started stays ignored, except Ctrl-C and SIGTERM.

    Until `defer()` is called, Ctrl-C raises KeyboardInterrupt as ever: so early there is nothing to save. Processes
    of torchrun, which have no terminal, defer from the start.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._has_come = False
        self._is_heard = False
        self._of_torchrun = self._defers = "RANK" in os.environ
        self._previous = {}
        self._previous_wakeup = -1
        self._pipe = (-1, -1)

    @property
    def requested(self) -> bool:
        """Whether a signal has come. For who acts on it: a process that asks has heard, and is not taken for stuck."""
        self._is_heard = self.signal is not None
        return self._is_heard

    @property
    def has_come(self) -> bool:
        """The same for other threads, which know it also while the main thread is stuck."""
        return self._has_come

    def defer(self) -> None:
        """From now on Ctrl-C, too, is a request."""
        self._defers = True

    def __enter__(self) -> StopRequest:
        reader, writer = self._pipe = os.pipe()
        os.set_blocking(writer, False)
        # Handlers wait for the main thread to return to Python; the pipe is written at once.
        self._previous_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        self._previous = {
            number: signal.signal(number, self._remember)
            for number in STOP_SIGNALS
            if number in _NEVER_IGNORED or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_heard = True
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
        """See every signal at once, and end the process at the second Ctrl-C, or under torchrun if it is stuck then."""
        interrupted: float | None = None
        urged = False
        while received := os.read(reader, 1):
            now, number = time.monotonic(), received[0]
            if number not in STOP_SIGNALS:  # Torch has a handler for the ends of loader workers.
                continue
            self._has_come = True
            if interrupted is None:
                interrupted = now if number == signal.SIGINT and self._defers else None
            elif now - interrupted <= _SAME_REQUEST or number not in (signal.SIGINT, signal.SIGTERM):
                continue
            elif not self._of_torchrun:
                if number == signal.SIGINT:
                    os._exit(_INTERRUPTED)
            elif not urged:
                urged = True
                waited = (now - interrupted,)
                threading.Thread(target=self._end_if_stuck, args=waited, name="patience", daemon=True).start()
        os.close(reader)

    def _end_if_stuck(self, waited: float) -> None:
        while not self._is_heard:
            if waited >= _STUCK:
                os._exit(_INTERRUPTED)
            time.sleep(_LOOK)
            # Waiting for a write is not being stuck; and what comes after it gets its time, too.
            waited = 0.0 if in_critical_section() else waited + _LOOK
