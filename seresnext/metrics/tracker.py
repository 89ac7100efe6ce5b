"""The sink of a tracking service, such as Weights & Biases or MLflow.

A process of its own follows the files of the run folder and sends new lines (follow.py). A service that is slow,
hangs, prints or crashes cannot disturb the training process, whose loader workers are forked.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from seresnext.metrics.services import SERVICES
from seresnext.metrics.sink import Event, RunStart
from seresnext.metrics.status import read_status
from seresnext.process.packages import require_extra

PATIENCE, STOPPED_PATIENCE = 60.0, 10.0
"""Seconds to send the last lines after the end of a run, and after a stop: torchrun kills a process after 30 s."""
_ATTACH_PATIENCE = 300.0  # seconds to send a report
_PROGRAM = ("-P", "-m", "seresnext.metrics.follow")


class Tracker:
    """A process that sends the events in `metrics.jsonl` to a service until the run ends."""

    def __init__(self, name: str, start: RunStart) -> None:
        """Start the process. Raises UsageError without the extra `track`."""
        require_extra("track", name)
        self._name, self._folder, self._report, self._is_reported = name, start.folder, start.report, False
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = _start(name, start.folder)
        except OSError as error:
            self._warn(f"cannot be started ({error.strerror})")

    def write(self, event: Event) -> None:
        """Print the reports of the process. The process reads the event from `metrics.jsonl`."""
        if self._process is None:
            return
        assert self._process.stdout
        # A pipe without text gives None, and an ended process b"".
        for line in (self._process.stdout.read() or b"").decode(errors="replace").splitlines():
            self._is_reported |= line.startswith("warning: ")
            self._report(line)
        if code := self._process.poll():
            with self._process:  # closes the pipes
                self._process = None
            self._warn(f"has ended with code {code}")

    def close(self) -> None:
        """Let the process send the rest, for at most PATIENCE or STOPPED_PATIENCE seconds."""
        if self._process is None:
            return
        seconds = STOPPED_PATIENCE if read_status(self._folder).get("state") == "preempted" else PATIENCE
        with self._process as process:
            assert process.stdin
            with suppress(OSError):
                process.stdin.write(b"end")  # A forked process may still hold the pipe open.
            if not _has_ended(process, seconds):
                self._warn(f"has not ended within {seconds:g} s; a later start sends the rest")
            self.write({})

    def _warn(self, text: str) -> None:
        if not self._is_reported:
            self._report(f"warning: the process of {self._name} {text}; the run is not affected")
        self._is_reported = True


def attach(folder: Path, path: Path) -> None:
    """Send a file or a folder to the services of a run, and print their reports."""
    for name in SERVICES:
        if not (folder / "trackers" / f"{name}.json").is_file():
            continue
        with _start(name, folder, path) as process:
            has_ended = _has_ended(process, _ATTACH_PATIENCE)
            assert process.stdout
            print((process.stdout.read() or b"").decode(errors="replace").strip())
        if not has_ended:
            print(f"warning: {name} does not answer, and {path} is not sent")


def _start(name: str, folder: Path, *path: Path) -> subprocess.Popen[bytes]:
    """Start the process of a service for a run folder: the process follows the run, or sends `path` as an artifact.

    Its standard output, which does not block, has reports. All else goes to `trackers/<name>.log`. The process has a
    session of its own: Ctrl-C is for the training, and `killpg` ends the helpers of the service, too.
    """
    (folder / "trackers").mkdir(exist_ok=True)
    metrics, pipe = folder / "metrics.jsonl", subprocess.PIPE
    size = metrics.stat().st_size if metrics.exists() else 0  # a new run may have no line yet
    words = [sys.executable, *_PROGRAM, name, folder.absolute(), str(size), *(each.absolute() for each in path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "trackers" / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=log, bufsize=0, start_new_session=True, env=env
        )
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    return process


def _has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a process, and kill the process after some seconds. Return whether it ended by itself."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True
