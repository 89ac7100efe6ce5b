"""The sink of a tracking service, such as Weights & Biases or MLflow.

A process of its own follows the files of the run folder and sends what is new (follow.py). A service that is slow, that
hangs, prints or crashes is therefore no matter of the training process, which also keeps its single thread for forks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from seresnext.metrics.sink import Event, RunStart
from seresnext.process.packages import require_extra

PATIENCE = 20.0
"""Seconds that the process has to send the last lines after the end of a run."""
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from seresnext.metrics.follow import main; main()"
)


class Tracker:
    """A process that sends the events in `metrics.jsonl` to a service until the run ends."""

    def __init__(self, name: str, start: RunStart) -> None:
        """Start the process, without waiting for the process. Raises UsageError without the extra `track`."""
        require_extra("track", name)
        self._name, self._report, self._warn = name, start.report, start.warn
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = start_process(name, start.folder)
        except OSError as error:
            self._warn(f"{name} cannot be started ({error.strerror}); training continues without {name}")

    def write(self, event: Event) -> None:
        """Print what the process reports. The process reads the event from `metrics.jsonl`."""
        if self._process is None:
            return
        assert self._process.stdout
        # A pipe without text gives None, and b"" after the end of the process.
        if text := self._process.stdout.read():
            self._report(text.decode(errors="replace").strip())
        if self._process.poll() is not None:
            code, self._process = self._process.returncode, None
            if code:
                self._warn(f"the process of {self._name} ended (exit code {code}); training continues without it")

    def close(self) -> None:
        """Let the process send the rest, at most PATIENCE seconds long."""
        if self._process is None:
            return
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
            self._process.stdin = None
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._warn(f"{self._name} does not answer within {PATIENCE:g} s; the next start sends the rest")
            self._process.returncode = 0
        self.write({})


def start_process(name: str, folder: Path, *paths: Path) -> subprocess.Popen[bytes]:
    """Start the process of a service in the folder of a run: it follows the run, or sends `paths` as an artifact.

    Reports come from its standard output, which does not block. Everything else goes to `trackers/<name>.log`.
    """
    own = folder / "trackers"
    own.mkdir(exist_ok=True)
    words = [name, str(folder.absolute()), *(str(path.absolute()) for path in paths)]
    with (own / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *words, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the training, and `killpg` also ends the helpers of a service.
        )
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    return process
