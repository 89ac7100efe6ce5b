"""torchrun, as the tests start it: in forks of one process that has imported it, which takes seconds.

It is torchrun's own program, with a process id, an environment and a session of its own; what it starts is started as
ever. `start` and `run` take `TORCHRUN` as the first word of a command for it, and any other command as it is.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

TORCHRUN = "torchrun, forked"
ROOT = Path(__file__).parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch.distributed.run"])


class Torchrun:
    """A running torchrun, with what the tests use of `subprocess.Popen`."""

    def __init__(
        self, words: Sequence[str], stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], cwd: Path
    ) -> None:
        arguments = (list(words), stdout.name, stderr.name, dict(env), cwd)
        self._process = _FORKS.Process(target=_be_torchrun, args=arguments, daemon=True)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(TORCHRUN, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start(
    argv: Sequence[str], stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], cwd: Path
) -> subprocess.Popen[bytes] | Torchrun:
    """Start a command in a session of its own, with nothing to read."""
    if argv[0] == TORCHRUN:
        return Torchrun(argv[1:], stdout, stderr, env, cwd)
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd, env=env, start_new_session=True
    )


def run(argv: Sequence[str], output: Path, env: Mapping[str, str], timeout: float = 900) -> int:
    """Run a command to its end; what it says goes to a file. Raises subprocess.TimeoutExpired."""
    with output.open("wb") as file:
        process = start(argv, file, file, env, ROOT)
    try:
        return process.wait(timeout)
    finally:
        process.send_signal(signal.SIGKILL)  # Nothing if it has ended.


def _be_torchrun(words: list[str], stdout: str, stderr: str, env: dict[str, str], cwd: Path) -> None:
    """In the fork: what a new process would find."""
    os.setsid()
    for path, number in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    gc.disable()
    sys.argv = ["torchrun", *words]
    from torch.distributed.run import main

    _heed_shutdown_timeout(words)
    main()


def _heed_shutdown_timeout(words: Sequence[str]) -> None:
    """torch 2.14 does where torchrun was told to stop; where a worker failed it waits 30 s, whatever it was told."""
    from torch.distributed.elastic.multiprocessing.api import PContext

    for word in words:
        option, _, seconds = word.partition("=")
        if option == "--shutdown-timeout":
            assert PContext.close.__defaults__ == (None, 30)
            PContext.close.__defaults__ = (None, int(seconds))
