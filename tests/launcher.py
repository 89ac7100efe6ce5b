"""Programs that the tests start as forks of one process, which has imported torch and this package already.

A new process needs seconds for these imports. Each fork has a process id, environment, session, streams and end like a
new process, and runs the file of the program. `start` knows these first words of a command:

    PYTHON   one process; a script or `-m MODULE` follows
    WORLD    the processes of a world, with the environment and the store that workers of torchrun have

The modules TORCHRUN (of PyTorch) and OWN_TORCHRUN start workers as new processes. tests/runs/test_launcher.py compares
a fork with a new process.
"""

import atexit
import io
import math
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, process, resource_tracker
from pathlib import Path
from typing import IO, NoReturn
from unittest.mock import patch

PYTHON = "python, forked"
WORLD = "world, forked"
TORCHRUN = "torch.distributed.run"
OWN_TORCHRUN = "seresnext.torchrun"
QUIET = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ROOT = Path(__file__).parents[1]
_PRELOADED = ["torch.distributed.run", "torch._dynamo", "torch.utils.tensorboard", "PIL.JpegImagePlugin"]
_PRELOADED += ["seresnext.run.train", "seresnext.run.validate", "seresnext.cli"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True)
class Result:
    """The end of a command. `output` is stdout followed by stderr."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class Fork:
    """A running fork, with the part of `subprocess.Popen` that the tests use."""

    def __init__(
        self, argv: Sequence[str], stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], cwd: Path
    ) -> None:
        arguments = (argv[0], list(argv[1:]), stdout.name, stderr.name, dict(env), cwd)
        self._process = _FORKS.Process(target=_begin, args=arguments, daemon=True)
        with patch.dict(os.environ, OMP_NUM_THREADS="1"):  # OpenMP reads the variable when it is loaded.
            forkserver.ensure_running()
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

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
    """Start a command in a new session, with an empty stdin."""
    if argv[0] in (PYTHON, WORLD):
        return Fork(argv, stdout, stderr, env, cwd)
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd, env=env, start_new_session=True
    )


def complete(world: int, words: Sequence[str | Path]) -> None:
    """Run a script in so many processes, and check that all end with 0. Raises subprocess.TimeoutExpired."""
    argv = [*([WORLD, f"--nproc_per_node={world}"] if world > 1 else [PYTHON]), *map(str, words)]
    with tempfile.NamedTemporaryFile() as output:
        started = start(argv, output, output, {**os.environ, **QUIET}, ROOT)
        try:
            code = started.wait(900)
        finally:
            started.send_signal(signal.SIGKILL)  # Does nothing after the end.
        assert code == 0, Path(output.name).read_text(errors="replace")


# ------------------------------------------------------------------------------------------------ in the fork


def _begin(program: str, words: list[str], stdout: str, stderr: str, env: dict[str, str], cwd: Path) -> None:
    """Give this fork the properties of a new process, and run the program."""
    os.setsid()
    for number, path in enumerate((os.devnull, stdout, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    (_run_python if program == PYTHON else _run_world)(words, env)


def _run_python(words: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Run a script, or `-m` and a module, as the main program of this process, and end the process."""
    os.closerange(3, 1024)
    assert env["OMP_NUM_THREADS"] == "1"
    os.environ.clear()
    os.environ.update(env)
    process.current_process()._config["daemon"] = False  # A daemon may not have children.
    process._parent_process = None
    resource_tracker._resource_tracker = resource_tracker.ResourceTracker()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(open(number, "wb", buffering=0, closefd=False), write_through=True)  # noqa: SIM115
        for number in (1, 2)
    )
    is_module = words[0] == "-m"
    sys.argv = list(words[1:] if is_module else words)
    sys.path.insert(0, str(Path.cwd()) if is_module else str(Path(words[0]).resolve().parent))
    run = partial(runpy.run_module, alter_sys=True) if is_module else runpy.run_path
    code = 1
    try:
        code = exit_code_of(lambda: run(sys.argv[0], run_name="__main__"))
        threading._shutdown()
        atexit._run_exitfuncs()
    finally:
        os._exit(code)


def exit_code_of(program: Callable[[], object]) -> int:
    """Run the main program of a process, print the error that ends it, and return the exit code."""
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


def _run_world(words: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Run a script in every process of a world, as torchrun does on one machine, and end with 0 or 1.

    A failed worker ends the others: SIGTERM, and SIGKILL after `--shutdown-timeout` seconds. Signals to this process
    are not passed on.
    """
    from torch.distributed import TCPStore

    script = next(number for number, word in enumerate(words) if not word.startswith("--"))
    options = dict(word.removeprefix("--").split("=", 1) for word in words[:script])
    size = int(options["nproc_per_node"])
    # The store starts after the forks. A fork would inherit the locks of the store's thread and the pipe of libuv.
    server = socket.create_server(("localhost", 0))
    port = server.getsockname()[1]
    world = _environment_of_world(size, port)
    workers = set()
    for rank in map(str, range(size)):
        pid = os.fork()
        if pid == 0:
            server.close()
            os.setsid()
            _run_python(words[script:], {**env, **world, "RANK": rank, "ROLE_RANK": rank, "LOCAL_RANK": rank})
        workers.add(pid)
    store = TCPStore("localhost", port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())
    code, deadline = 0, math.inf
    while workers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        workers.discard(pid)
        if status and code == 0:
            code, deadline = 1, time.monotonic() + float(options.get("shutdown-timeout", 30))
            _send(signal.SIGTERM, workers)
        if time.monotonic() > deadline:
            print(f"forcefully exiting processes {sorted(workers)}", file=sys.stderr, flush=True)
            _send(signal.SIGKILL, workers)
            deadline = math.inf
        time.sleep(0 if pid else 0.02)
    del store
    os._exit(code)


def _send(number: signal.Signals, workers: set[int]) -> None:
    for pid in workers:
        os.kill(pid, number)


def _environment_of_world(size: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun gives to all workers alike."""
    return {
        **dict.fromkeys(("ROLE_WORLD_SIZE", "LOCAL_WORLD_SIZE", "WORLD_SIZE"), str(size)),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": str(uuid.uuid4()),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
