"""The signals that stop a training, and how child processes of a training react to signals.

torchrun and terminals send signals to whole process groups. The children of a trainer keep working until the trainer
has saved, and end with the trainer. A trainer ends with torchrun in the same way. This module imports nothing heavy:
the handlers are installed before torch is imported.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

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
