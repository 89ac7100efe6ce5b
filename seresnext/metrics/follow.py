"""The process of a tracker: sends the files of a run folder to a service, until the run ends.

The training process starts this one (tracker.py), and closes its standard input at the end of the run. The events come
from `metrics.jsonl`. `trackers/<name>.json` has the id of the service's run, and the number of bytes that were sent: a
resumed run continues the same run of the service, and sends what an earlier start could not send.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from seresnext.files import open_regular, read_small_json, write_atomically
from seresnext.metrics.mlflow_service import Mlflow
from seresnext.metrics.sink import FIRST_BATCH, charts, flatten
from seresnext.metrics.status import read_status
from seresnext.metrics.weights_and_biases import WeightsAndBiases
from seresnext.printable import printable
from seresnext.process.signals import die_with_parent, ignore_signals
from seresnext.recipe import load_recipe, to_values

_POLL, _RETRY = 1.0, 60.0  # seconds until the next look at the file, and until the next try after an error
_LAST = 30  # seconds for the end, after which the system ends this process


class Service(Protocol):
    """A run of a tracking service. `id` names the run; `address` is where a user finds the run. All methods may raise.

    The constructor takes the folder of the run, the id to continue (None: a new run) and the values of the recipe.
    """

    id: str
    address: str

    def log(self, numbers: Mapping[str, float], step: int, epoch: float) -> None:
        """Log numbers at a step and its epoch."""

    def picture(self, path: Path) -> None:
        """Log a picture at step 0."""

    def artifact(self, path: Path) -> None:
        """Keep a file, or a folder with all files, under its name."""

    def finish(self, state: str) -> None:
        """End with a state of `status.json`, and wait until everything is sent."""


SERVICES: dict[str, Callable[[Path, str | None, Mapping[str, Any]], Service]] = {
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
}


class Follower:
    """The state between a run folder and a service."""

    def __init__(self, name: str, folder: Path, announce: Callable[[str], None]) -> None:
        self._name, self._folder, self._announce = name, folder, announce
        self._state = folder / "trackers" / f"{name}.json"
        found = read_small_json(self._state)
        found = found if isinstance(found, dict) else {}
        known, sent = found.get("id"), found.get("sent")
        self._id = known if isinstance(known, str) else None
        # A resumed run has removed the lines that it writes again.
        size = (folder / "metrics.jsonl").stat().st_size
        self._sent = min(sent, size) if type(sent) is int and sent >= 0 else 0
        self._recipe: dict[str, Any] = {}
        self._service: Service | None = None

    def open(self) -> Service:
        """Return the service, connected."""
        if self._service is None:
            self._recipe = to_values(load_recipe(self._folder / "recipe.yaml").recipe)
            self._service = service = SERVICES[self._name](self._folder, self._id, flatten(self._recipe))
            if service.id != self._id:
                self._id, self._sent = service.id, 0
            self._save()
            self._announce(service.address)
            for name in ("recipe.yaml", "environment.json"):
                service.artifact(self._folder / name)
        return self._service

    def catch_up(self) -> None:
        """Send the lines that are new. Raises what the service raises; the next call then sends the rest."""
        service, before = self.open(), self._sent
        with os.fdopen(open_regular(self._folder / "metrics.jsonl"), "rb") as file:
            file.seek(self._sent)
            try:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._send(service, line)
                    self._sent += len(line)
            finally:
                if self._sent != before:
                    self._save()

    def _send(self, service: Service, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, step = str(event["event"]), int(event["step"])
        except (LookupError, TypeError, ValueError, RecursionError):
            return
        if kind == "picture":
            service.picture(self._folder / FIRST_BATCH)
        elif numbers := charts(event, self._recipe):
            service.log(numbers, step, event.get("epoch", 0.0))

    def finish(self) -> None:
        """Send the rest and the state of the run."""
        self.catch_up()
        self.open().finish(str(read_status(self._folder).get("state")))

    def _save(self) -> None:
        write_atomically(self._state, json.dumps({"id": self._id, "sent": self._sent}) + "\n")


def follow(follower: Follower, report: Callable[[str, Exception], None], is_over: Callable[[float], bool]) -> None:
    """Send what is new until `is_over(seconds)`, which waits for the end of the run. Report errors, and try again."""
    while True:
        pause = _POLL
        try:
            follower.catch_up()
        except Exception as error:
            pause = _RETRY
            report("the lines are kept and sent later", error)
        if is_over(pause):
            break
    signal.alarm(_LAST)
    try:
        follower.finish()
    except Exception as error:
        report("the next start of the run sends the rest", error)


def main() -> None:
    """Follow the run folder of the command line, or send further paths of the command line as artifacts."""
    name, folder, *paths = sys.argv[1:]
    ignore_signals()  # Those are for the training, whose end ends this process.
    signal.signal(signal.SIGRTMIN, lambda number, frame: signal.alarm(_LAST))
    die_with_parent(signal.SIGRTMIN)
    parent = os.getppid()
    os.nice(10)
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Services print.
    seen: list[str] = []

    def report(consequence: str, error: Exception) -> None:
        print(f"{datetime.now():%F %T} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if not seen:
            text = printable(str(error).strip().partition("\n")[0] or type(error).__name__, 300)
            print(f"warning: {name} failed ({text}); training continues, and {consequence}", file=reports)
        seen.append(consequence)

    def is_over(seconds: float) -> bool:
        return bool(select.select([0], [], [], seconds)[0]) or os.getppid() != parent

    follower = Follower(name, Path(folder), lambda text: print(f"{name}: {text}", file=reports))
    if not paths:
        follow(follower, report, is_over)
        return
    try:
        for path in paths:
            follower.open().artifact(Path(path))
        follower.finish()
    except Exception as error:
        report("the files are not sent", error)
        sys.exit(1)
