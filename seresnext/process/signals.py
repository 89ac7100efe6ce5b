"""The signals that stop a training, and the processes that it starts.

torchrun and terminals signal whole process groups. Helpers of a trainer stay at work until it has saved, and end with
it, as a trainer does with torchrun. Imports nothing heavy: train.py listens before it imports torch.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (
    signal.SIGINT,  # Ctrl-C
    signal.SIGTERM,  # a scheduler
    signal.SIGUSR1,  # a cluster, before the machine is taken away
    signal.SIGUSR2,  # the same, on other clusters
    signal.SIGHUP,  # a terminal that was closed, a connection that was lost
    signal.SIGXCPU,  # the limit of CPU time (`ulimit -St`); at the hard limit the kernel kills
)
"""The signals that request a stop of the training."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# This process and who started it, as they were when this module was imported: train.py does that first of all.
_SELF, _STARTED_BY = os.getpid(), os.getppid()


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Start processes in this block that no stop signal ends; forked workers of ours go on with `init_worker`.

    A compiler that died of one would take the run along before it has saved. The calling thread does not take signals
    meanwhile; that of a StopRequest does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker() -> None:
    """In a forked worker, first of all: ignore the stop signals, and end with the parent."""
    ignore_signals()
    die_with_parent(signal.SIGKILL)


def ignore_signals() -> None:
    """Leave what is done as it is: in the last moments of a process, when nothing is left to stop, or in a worker."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent(death_signal: signal.Signals) -> None:
    """Ask Linux to send this process a signal when its parent ends, so that a killed launcher leaves no orphans."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(death_signal))
    # The parent may have ended before that. Who it was is known where multiprocessing started this process, or where
    # this is the process that began as a command.
    parent = multiprocessing.parent_process()
    expected = parent.pid if parent else _STARTED_BY if os.getpid() == _SELF else None
    if expected and expected != os.getppid():
        os.kill(os.getpid(), death_signal)


def die_with_launcher() -> None:
    """In a process of torchrun's, before torch is imported: end at once if torchrun does; there is nothing to save yet.

    That import takes seconds, on slow storage minutes, and what torchrun leaves behind would then look for it in vain.
    """
    if "RANK" in os.environ:
        die_with_parent(signal.SIGKILL)


_completing: list[None] = []


@contextmanager
def critical_section() -> Iterator[None]:
    """Mark what a process should not be ended in by its own threads, as the writing of a checkpoint."""
    _completing.append(None)
    try:
        yield
    finally:
        _completing.pop()


def in_critical_section() -> bool:
    """Whether some thread of this process is in a block of `critical_section`."""
    return bool(_completing)
