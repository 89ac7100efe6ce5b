"""The process of a tracker: sends the files of a run folder to a service, until the run ends.

The training process starts this one (tracker.py). At the end of the run, standard input gets a byte or is closed. The
events come from `metrics.jsonl`. `trackers/<name>.json` has the id of the service's run, and the number of bytes that
were sent: a resumed run continues the same run of the service, and sends the lines that an earlier start could not
send.
"""

import fcntl
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path

from seresnext.errors import printable
from seresnext.files import open_regular, read_small_json, write_atomically
from seresnext.metrics.services import SERVICES, Mlflow, WeightsAndBiases
from seresnext.metrics.sink import FIRST_BATCH, charts, flatten
from seresnext.metrics.status import read_status
from seresnext.process.signals import die_with_parent, ignore_signals
from seresnext.recipe import load_recipe, to_values

_POLL, _RETRY = 1.0, 60.0  # seconds until the next look at the file, and until the next try after an error
_LAST = 60  # seconds to live after the training process has died


class Follower:
    """The state between a run folder and a service. All methods raise the errors of the service.

    size: bytes of `metrics.jsonl` at the start of the run. A resumed run has removed the lines that follow, and writes
    these lines again.
    """

    def __init__(self, name: str, folder: Path, size: int, announce: Callable[[str], None]) -> None:
        self._name, self._folder, self._announce = name, folder, announce
        self._state = folder / "trackers" / f"{name}.json"
        found = read_small_json(self._state)
        known, sent = found.get("id"), found.get("sent")
        self._id = known if isinstance(known, str) else None
        self._sent = min(sent, size) if type(sent) is int and sent >= 0 else 0
        self._metrics = folder / "metrics.jsonl"

    @cached_property
    def service(self) -> WeightsAndBiases | Mlflow:
        """The service, connected to its run. After an error, the next use connects again."""
        self._recipe = to_values(load_recipe(self._folder / "recipe.yaml").recipe)
        service = SERVICES[self._name](self._folder, self._id, flatten(self._recipe))
        if service.id != self._id:
            self._id, self._sent = service.id, 0
            self._save()
        self._announce(service.address)
        for name in ("recipe.yaml", "environment.json"):
            service.artifact(self._folder / name)
        return service

    def catch_up(self) -> None:
        """Send the lines that are new. After an error, the next call sends the rest."""
        service, before = self.service, self._sent
        if not self._metrics.exists():
            return
        with os.fdopen(open_regular(self._metrics), "rb") as file:
            file.seek(self._sent)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                is_picture, place, numbers = False, (0, 0.0), {}
                with suppress(ArithmeticError, LookupError, TypeError, ValueError, RecursionError):  # not an event
                    event = json.loads(line)
                    is_picture, place = event["event"] == "picture", (int(event["step"]), float(event["epoch"]))
                    numbers = charts(event, self._recipe)
                if is_picture:
                    service.picture(self._folder / FIRST_BATCH)
                elif numbers:
                    service.log(numbers, *place)
                self._sent += len(line)
        if self._sent != before:
            self._save()

    def finish(self, running: str = "running") -> None:
        """Send how the run ended. `running` is the state of a run whose status has no end."""
        state = str(read_status(self._folder).get("state"))
        self.service.finish(running if state == "running" else state)

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
    name, folder, size, *path = sys.argv[1:]
    ignore_signals()  # They are for the training, whose end ends this process.
    signal.signal(signal.SIGRTMIN, lambda number, frame: signal.alarm(_LAST))
    die_with_parent(signal.SIGRTMIN)
    os.nice(5)
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Services print.
    reported: list[Exception] = []

    def announce(text: str) -> None:
        with suppress(BrokenPipeError):  # A killed training reads no more, and its last lines are still sent.
            print(text, file=reports)

    def report(error: Exception) -> None:
        print(f"{datetime.now():%F %T} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if not reported:
            text = printable(str(error).strip().partition("\n")[0] or type(error).__name__, 300)
            announce(f"warning: {name} failed ({text}); unsent lines are sent later")
        reported.append(error)

    is_alone = True
    try:  # The process of an earlier start may still send its last lines.
        fcntl.flock(2, fcntl.LOCK_EX | (fcntl.LOCK_NB if path else 0))
    except OSError:  # The run is running, and its process sends the lines. Or the file system has no locks.
        is_alone = False
    try:
        follower = Follower(name, Path(folder), int(size), lambda text: announce(f"{name}: {text}"))
        if not path:
            follow(follower, report, lambda pause: bool(select.select([0], [], [], pause)[0]))
            return
        if is_alone:
            follower.catch_up()
        follower.service.artifact(Path(path[0]))
        follower.finish()
    except Exception as error:
        report(error)


if __name__ == "__main__":
    main()
