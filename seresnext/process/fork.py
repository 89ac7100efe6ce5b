"""Forked processes that are checked to have begun.

In Python before 3.11.10, a new fork can deadlock before its first instruction, because another thread held the lock of
the list of threads (https://github.com/python/cpython/issues/112275). Threads of gloo hold the lock for microseconds.
Two training processes that validated after each step hung after some 9,000 forks.
"""

import os
import select
import signal
from multiprocessing import popen_fork, process
from multiprocessing.context import BaseContext
from typing import Any

# Seconds for a new process to begin. A healthy process needs milliseconds. A process that is killed for being slow has
# done nothing yet, and the next attempt replaces the process.
PATIENCE = 10.0
# The attempt after these waits as long as it takes: on a machine that is too busy to begin a process, more do not help.
_ATTEMPTS = 5


class _Popen(popen_fork.Popen):
    def _launch(self, process_obj: Any) -> None:
        for patience in (*[PATIENCE] * _ATTEMPTS, None):
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
