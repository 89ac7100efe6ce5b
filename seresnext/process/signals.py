"""The signals that stop a training, the requests to stop, and the children of a training.

torchrun and terminals send signals to whole process groups. The children of a trainer keep working until the trainer
has saved, and end with the trainer. A trainer ends with torchrun in the same way. This module imports nothing heavy:
the handlers are installed before torch is imported.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import popen_fork, process
from multiprocessing.context import BaseContext
from types import FrameType, TracebackType
from typing import Any

from seresnext.process.exit import INTERRUPTED

STOP_SIGNALS = (
    signal.SIGINT,  # Ctrl-C
    signal.SIGTERM,  # a scheduler
    signal.SIGUSR1,  # a cluster, before the job's time ends
    signal.SIGUSR2,  # the same, on other clusters
    signal.SIGHUP,  # a closed terminal, a lost connection
    signal.SIGXCPU,  # the soft limit of CPU time (`ulimit -St`); at the hard limit the kernel kills
)
"""The signals that request a stop of the training."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# This process and its parent when this module was imported, which is the first import of a command.
_SELF, _PARENT = os.getpid(), os.getppid()


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Start processes in this block that no stop signal ends. Forked workers call `init_worker` as well.

    A compiler process that a signal ended would end the run before a save. The calling thread takes no signals inside
    the block; the thread of a StopRequest does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker() -> None:
    """Ignore the stop signals and end with the parent. A forked worker calls this first."""
    ignore_signals()
    die_with_parent(signal.SIGKILL)


def ignore_signals() -> None:
    """Ignore the stop signals: in loader workers, and while a process shuts down."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent(death_signal: signal.Signals) -> None:
    """Ask Linux to send this process a signal when the parent ends, so that a killed launcher leaves no orphans."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(death_signal))
    # The parent may have ended before this call. The expected parent is known if multiprocessing started this process,
    # or if this process is the command itself.
    parent = multiprocessing.parent_process()
    expected = parent.pid if parent else _PARENT if os.getpid() == _SELF else None
    if expected and expected != os.getppid():
        os.kill(os.getpid(), death_signal)


def die_with_launcher() -> None:
    """End a process of torchrun at once if torchrun ends. Call this before torch is imported: nothing needs a save yet.

    The import can take minutes. A process without torchrun would then wait for a server that no longer exists.
    """
    if "RANK" in os.environ:
        die_with_parent(signal.SIGKILL)


_critical_sections: list[None] = []


@contextmanager
def critical_section() -> Iterator[None]:
    """Mark a block in which this process must not end itself, such as the write of a checkpoint."""
    _critical_sections.append(None)
    try:
        yield
    finally:
        _critical_sections.pop()


def in_critical_section() -> bool:
    """Return whether a thread of this process is inside a `critical_section`."""
    return bool(_critical_sections)


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


# Seconds for a new process to begin. A healthy process needs milliseconds. A process that is killed for being slow has
# done nothing yet, and the next attempt replaces the process.
FORK_PATIENCE = 10.0
# The attempt after these waits as long as it takes: on a machine that is too busy to begin a process, more do not help.
_FORK_ATTEMPTS = 5


class _Popen(popen_fork.Popen):
    """A fork that is checked to have begun.

    In Python before 3.11.10, a new fork can deadlock before its first instruction, because another thread held the lock
    of the list of threads (https://github.com/python/cpython/issues/112275). Threads of gloo hold the lock for
    microseconds. Two training processes that validated after each step hung after some 9,000 forks.
    """

    def _launch(self, process_obj: Any) -> None:
        for patience in (*[FORK_PATIENCE] * _FORK_ATTEMPTS, None):
            begun, process_obj.begun = os.pipe()
            try:
                super()._launch(process_obj)  # pyright: ignore[reportAttributeAccessIssue]
                os.close(process_obj.begun)
                # The pipe ends when the process begins, and also when the process dies.
                if select.select([begun], [], [], patience)[0]:
                    return
            finally:
                os.close(begun)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            assert self.finalizer
            self.finalizer()


class ForkProcess(process.BaseProcess):
    """A forked process. `start` returns once the process has begun."""

    _start_method = "fork"
    begun: int

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> popen_fork.Popen:
        return _Popen(process_obj)

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        os.close(self.begun)
        return super()._bootstrap(parent_sentinel)  # pyright: ignore[reportAttributeAccessIssue]


class ForkContext(BaseContext):
    """The multiprocessing context of such processes."""

    _name = "fork"
    Process = ForkProcess


FORK = ForkContext()
