"""Runs commands in forks of one process that has imported torch, and measures the memory and time of each command.

As a program, this file is that process, which answers each line of JSON with a line. The import of torch takes seconds,
and happens once for many commands. The memory that a fork adds belongs to the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launcher import exit_code_of

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class ProbeResult:
    """The end of a command: exit code (negative: the signal), output, CPU seconds, and MB added at the peak."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    megabytes: float

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class Probe:
    """Runs scripts of the project. A command may take `limit` seconds and 8 GB of address space beyond the imports."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *argv: str | Path, limit: int = 120) -> ProbeResult:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps({"argv": [str(word) for word in argv], "limit": limit}), file=self._process.stdin, flush=True)
        return ProbeResult(**json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def open_probe() -> Iterator[Probe]:
    """Start the process for a block, and kill it at the end of the block."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
    ) as process:
        try:
            yield Probe(process)
        finally:
            process.kill()


def assert_refused(result: ProbeResult, code: int = 4, megabytes: float = 100, seconds: float = 20) -> str:
    """Check that a command printed one short message without terminal control codes. Returns the message."""
    assert result.returncode == code, result.output[-2000:]
    message = result.stderr
    assert message.startswith("error: ")
    assert "Traceback" not in result.output
    assert all(character.isprintable() or character == "\n" for character in result.output)
    assert len(message) < 40_000
    assert result.megabytes < megabytes
    assert result.seconds < seconds
    return message


def _peak() -> int:
    """Return the peak memory of this process in bytes since the last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _command(argv: Sequence[str]) -> None:
    sys.argv = list(argv)
    if argv[0] == "-c":
        exec(compile(argv[1], "<command>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(argv[0]).resolve().parent))  # As Python does.
        runpy.run_path(argv[0], run_name="__main__")


def _child(argv: Sequence[str], limit: int, out: IO[bytes], err: IO[bytes], report: int) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (8 << 30), resource.RLIM_INFINITY))
    signal.alarm(limit)
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    before = _peak()
    code = 1
    try:
        code = exit_code_of(lambda: _command(argv))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(report, str(_peak() - before).encode())
        os._exit(code)


def _run(argv: Sequence[str], limit: int) -> ProbeResult:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(argv, limit, out, err, write)
        os.close(write)
        _, status, usage = os.wait4(pid, 0)
        grown = os.read(read, 100)
        os.close(read)
        out.seek(0)
        err.seek(0)
        return ProbeResult(
            os.waitstatus_to_exitcode(status),
            out.read().decode(errors="replace"),
            err.read().decode(errors="replace"),
            usage.ru_utime + usage.ru_stime,
            int(grown or b"-1000000") / 1e6,
        )


def _serve() -> None:
    import PIL.JpegImagePlugin
    import PIL.PngImagePlugin  # noqa: F401
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")  # The output of a command goes to files.
    for line in sys.stdin:
        print(json.dumps(vars(_run(**json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
