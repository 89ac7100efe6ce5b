"""Programs as the tests start them: as forks of one process that has imported what they import, which takes seconds.

A fork has a process id, an environment, a session, streams and an end of its own, and runs the program's own file. The
workers of a torchrun are forks, too: made before it has threads and sockets, they wait until it starts them. `start`
takes `TORCHRUN` or `PYTHON` as the first word of a command for this, `TORCHRUN_ALONE` for one whose workers are new
processes, `OWN_TORCHRUN` for `python -m seresnext.torchrun`, and any other command unchanged.
"""

from __future__ import annotations

import atexit
import gc
import io
import multiprocessing
import os
import pickle
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, process, resource_tracker
from pathlib import Path
from typing import IO, Any, NoReturn
from unittest.mock import patch

TORCHRUN = "torchrun, forked"
TORCHRUN_ALONE = "torchrun, forked, that starts new processes"
OWN_TORCHRUN = "seresnext.torchrun, forked"
PYTHON = "python, forked"
QUIET = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ROOT = Path(__file__).parents[1]
_PRELOADED = ["torch.distributed.run", "torch._dynamo", "torch.utils.tensorboard", "PIL.JpegImagePlugin"]
_PRELOADED += ["seresnext.run.train", "seresnext.run.validate", "seresnext.cli"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_PRELOADED)


class Fork:
    """A running fork, with what the tests use of `subprocess.Popen`."""

    def __init__(
        self, argv: Sequence[str], stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], cwd: Path
    ) -> None:
        arguments = (argv[0], list(argv[1:]), stdout.name, stderr.name, dict(env), cwd)
        self._process = _FORKS.Process(target=_begin, args=arguments, daemon=True)
        with patch.dict(os.environ, OMP_NUM_THREADS="1"):  # OpenMP reads it when it is loaded.
            forkserver.ensure_running()
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
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start(
    argv: Sequence[str], stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], cwd: Path
) -> subprocess.Popen[bytes] | Fork:
    """Start a command in a session of its own, with nothing to read."""
    if argv[0] in (TORCHRUN, TORCHRUN_ALONE, OWN_TORCHRUN, PYTHON):
        return Fork(argv, stdout, stderr, env, cwd)
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd, env=env, start_new_session=True
    )


def complete(world: int, words: Sequence[str | Path]) -> None:
    """Run a script in so many processes to its end, which must be a good one. Raises subprocess.TimeoutExpired."""
    torchrun = [TORCHRUN, "--standalone", f"--nproc_per_node={world}"]
    argv = [*(torchrun if world > 1 else [PYTHON]), *map(str, words)]
    with tempfile.NamedTemporaryFile() as said:
        started = start(argv, said, said, {**os.environ, **QUIET}, ROOT)
        try:
            code = started.wait(900)
        finally:
            started.send_signal(signal.SIGKILL)  # Nothing if it has ended.
        assert code == 0, Path(said.name).read_text(errors="replace")


# ------------------------------------------------------------------------------------------------ in the fork


def _begin(program: str, words: list[str], stdout: str, stderr: str, env: dict[str, str], cwd: Path) -> None:
    """What a new process would find."""
    os.setsid()
    for number, path in enumerate((os.devnull, stdout, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    if program == PYTHON:
        _be_python(words, env)
    _set_environment(env)
    gc.disable()
    sys.argv = ["torchrun", *words]
    from torch.distributed.run import main

    _heed_shutdown_timeout(words)
    if program in (TORCHRUN, OWN_TORCHRUN):
        _start_forks(words)
    if program == OWN_TORCHRUN:
        from seresnext import torchrun

        sys.exit(torchrun.main())
    main()


def _be_python(words: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Run a script as the main program of this process, from beginning to end."""
    os.closerange(3, 1024)
    _set_environment(env)
    process.current_process()._config["daemon"] = False  # It may have children
    process._parent_process = None  # and is none of multiprocessing's.
    resource_tracker._resource_tracker = resource_tracker.ResourceTracker()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(open(number, "wb", buffering=0, closefd=False), write_through=True)  # noqa: SIM115
        for number in (1, 2)
    )
    sys.argv = list(words)
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    code = 1
    try:
        code = exit_code_of(lambda: runpy.run_path(words[0], run_name="__main__"))
        threading._shutdown()
        atexit._run_exitfuncs()
    finally:
        os._exit(code)


def exit_code_of(program: Callable[[], object]) -> int:
    """What a process ends with whose main program this is; it says what that ended of."""
    try:
        program()
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _set_environment(env: Mapping[str, str]) -> None:
    assert env["OMP_NUM_THREADS"] == "1"
    os.environ.clear()
    os.environ.update(env)


def _heed_shutdown_timeout(words: Sequence[str]) -> None:
    """torch 2.14 does where torchrun was told to stop; where a worker failed it waits 30 s, whatever it was told."""
    from torch.distributed.elastic.multiprocessing.api import PContext

    for word in words:
        option, _, seconds = word.partition("=")
        if option == "--shutdown-timeout":
            assert PContext.close.__defaults__ == (None, 30)
            PContext.close.__defaults__ = (None, int(seconds))


# ------------------------------------------------------------------------------------------------ torchrun's workers


def _start_forks(words: Sequence[str]) -> None:
    """Let torchrun take forks of this process as its workers, for as many restarts as it may make."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    count = int(options["--nproc_per_node"]) * (1 + int(options.get("--max-restarts", 0)))
    waiting = [_Worker() for _ in range(count)]
    as_ever = SubprocessHandler._popen

    def popen(self: SubprocessHandler, args: tuple[str, ...], env: dict[str, str]) -> Any:
        if not waiting or self._stdout or self._stderr:
            return as_ever(self, args, env)
        worker = waiting.pop(0)
        worker.begin(args, env)
        return worker

    SubprocessHandler._popen = popen


class _Worker:
    """A fork that waits to be told its program, and ends when nobody is left to tell it.

    It has what torchrun uses of `subprocess.Popen`.
    """

    def __init__(self) -> None:
        reader, self._writer = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.closerange(3, reader)
            os.closerange(reader + 1, 1024)
            with os.fdopen(reader, "rb") as pipe:
                order = pipe.read()
            if order:
                _be_python(*pickle.loads(order))
            os._exit(0)
        os.close(reader)

    def begin(self, args: Sequence[str], env: Mapping[str, str]) -> None:
        """Run `python -u script ...`."""
        assert args[:2] == (sys.executable, "-u"), args
        with os.fdopen(self._writer, "wb") as pipe:
            pipe.write(pickle.dumps((args[2:], dict(env))))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a worker", timeout)
            time.sleep(0.02)
        return code
