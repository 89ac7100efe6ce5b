"""The process of a tracker: sends the files of a run folder to a service, until the run ends.

The training process starts this one (tracker.py), and writes to its standard input at the end of the run. The events
come from `metrics.jsonl`. `trackers/<name>.json` has the id of the service's run, and the number of bytes that were
sent: a resumed run continues the same run of the service, and sends the lines that an earlier start could not send.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from seresnext.files import open_regular, read_small_json, write_atomically
from seresnext.metrics.mlflow_service import Mlflow
from seresnext.metrics.sink import FIRST_BATCH, charts, flatten
from seresnext.metrics.status import read_status
from seresnext.metrics.weights_and_biases import WeightsAndBiases
from seresnext.printable import printable
from seresnext.process.signals import die_with_parent, ignore_signals
from seresnext.recipe import load_recipe, to_values

SERVICES = {"wandb": WeightsAndBiases, "mlflow": Mlflow}
_POLL, _RETRY = 1.0, 60.0  # seconds until the next look at the file, and until the next try after an error
_LAST = 60  # seconds for the end, after which the system ends this process


class Follower:
    """The state between a run folder and a service. All methods raise the errors of the service."""

    def __init__(self, name: str, folder: Path, announce: Callable[[str], None]) -> None:
        self._name, self._folder, self._announce = name, folder, announce
        self._state = folder / "trackers" / f"{name}.json"
        found = read_small_json(self._state)
        found = found if isinstance(found, dict) else {}
        known, sent = found.get("id"), found.get("sent")
        self._id = known if isinstance(known, str) else None
        # A resumed run has removed the lines that it writes again, and a new run may have no line yet.
        self._metrics = folder / "metrics.jsonl"
        size = self._metrics.stat().st_size if self._metrics.exists() else 0
        self._sent = min(sent, size) if type(sent) is int and sent >= 0 else 0
        self._service: WeightsAndBiases | Mlflow | None = None

    def open(self) -> WeightsAndBiases | Mlflow:
        """Return the service, connected to its run."""
        if self._service is not None:
            return self._service
        self._recipe = to_values(load_recipe(self._folder / "recipe.yaml").recipe)
        service = SERVICES[self._name](self._folder, self._id, flatten(self._recipe))
        if service.id != self._id:
            self._id, self._sent = service.id, 0
            self._save()
        self._announce(service.address)
        for name in ("recipe.yaml", "environment.json"):
            service.artifact(self._folder / name)
        self._service = service
        return service

    def catch_up(self) -> None:
        """Send the lines that are new. After an error, the next call sends the rest."""
        service, before = self.open(), self._sent
        if not self._metrics.exists():
            return
        with os.fdopen(open_regular(self._metrics), "rb") as file:
            file.seek(self._sent)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                with suppress(LookupError, TypeError, ValueError, RecursionError):  # not an event
                    event = json.loads(line)
                    step, epoch, numbers = int(event["step"]), float(event["epoch"]), charts(event, self._recipe)
                    if event["event"] == "picture":
                        service.picture(self._folder / FIRST_BATCH)
                    elif numbers:
                        service.log(numbers, step, epoch)
                self._sent += len(line)
        if self._sent != before:
            self._save()

    def finish(self, running: str = "running") -> None:
        """Send how the run ended. `running` is the state of a run whose status has no end."""
        state = str(read_status(self._folder).get("state"))
        self.open().finish(running if state == "running" else state)

    def _save(self) -> None:
        write_atomically(self._state, json.dumps({"id": self._id, "sent": self._sent}) + "\n")


def follow(follower: Follower, report: Callable[[Exception], None], is_over: Callable[[float], bool]) -> None:
    """Send new lines until `is_over(seconds)`, which waits for the end of the run. Report errors, and try again."""
    pause = 0.0
    while not is_over(pause):
        pause = _POLL
        try:
            follower.catch_up()
        except Exception as error:
            pause = _RETRY
            report(error)
    follower.catch_up()
    follower.finish(running="killed")


def main() -> None:
    """Follow the run folder of the command line, or send the further path of the command line as an artifact."""
    name, folder, *path = sys.argv[1:]
    parent = os.getppid()
    ignore_signals()  # They are for the training, whose end ends this process.
    signal.signal(signal.SIGRTMIN, lambda number, frame: signal.alarm(_LAST))
    die_with_parent(signal.SIGRTMIN)
    os.nice(5)
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Services print.
    reported: list[Exception] = []

    def report(error: Exception) -> None:
        print(f"{datetime.now():%F %T} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if not reported:
            text = printable(str(error).strip().partition("\n")[0] or type(error).__name__, 300)
            print(f"warning: {name} failed ({text}); unsent lines are sent later", file=reports)
        reported.append(error)

    def is_over(pause: float) -> bool:
        if not select.select([0], [], [], pause)[0] and os.getppid() == parent:
            return False
        signal.alarm(_LAST)
        return True

    try:
        follower = Follower(name, Path(folder), lambda text: print(f"{name}: {text}", file=reports))
        if path:
            with suppress(OSError):  # While the run is running, another process has the lock, and sends the lines.
                fcntl.flock(2, fcntl.LOCK_EX | fcntl.LOCK_NB)
                follower.catch_up()
            follower.open().artifact(Path(path[0]))
            follower.finish()
            return
        with suppress(OSError):  # A file system without locks.
            fcntl.flock(2, fcntl.LOCK_EX)  # The process of an earlier start may still send its last lines.
        follow(follower, report, is_over)
    except Exception as error:
        report(error)
