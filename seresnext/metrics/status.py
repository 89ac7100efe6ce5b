"""`status.json` of a run folder: the state of the run, for schedulers and for users who see only the folder.

torchrun hides the exit codes of its workers, so schedulers read the outcome here.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seresnext.files import read_small_json, write_atomically
from seresnext.metrics.sink import Event, RunStart, Sink

if TYPE_CHECKING:
    from seresnext.distributed import World

_NAME = "status.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# All fields, with the types of their values. A file from a stranger may hold other fields and types.
_TYPES = {
    **dict.fromkeys(("state", "reason", "host", "updated", "started"), str),
    **dict.fromkeys(("step", "pid", "world_size", "saved_step", "mirrored_step", "total_steps"), int),
    "best": dict,
}
# The training thread and the thread that writes checkpoints both change the file.
_lock = threading.RLock()


class StatusFile(Sink):
    """The sink that keeps the step in `status.json`."""

    def __init__(self, start: RunStart) -> None:
        self._folder = start.folder

    def write(self, event: Event) -> None:
        """Write the step of a `train` event."""
        if event["event"] == "train":
            update_status(self._folder, step=event["step"])


def write_status(folder: Path, world: World, state: str, step: int, reason: str | None) -> None:
    """Write a new state. The state `running` sets the start time to now. Other fields of `update_status` stay.

    On a full disk the new status overwrites the old one in place. Any other error becomes a warning.
    """
    try:
        with _lock:
            status = {**dict.fromkeys(_TYPES), **read_status(folder), "state": state, "step": step, "reason": reason}
            status |= {"pid": os.getpid(), "host": socket.gethostname(), "world_size": world.size, "updated": _now()}
            if state == "running":
                status["started"] = status["updated"]
            _write(folder, status)
    except OSError as error:
        # An error here must not hide the outcome. A checkpoint that meets a full disk has its own message.
        print(f"warning: {folder / _NAME} cannot be written ({error.strerror})", file=sys.stderr)


def read_status(folder: Path) -> dict[str, Any]:
    """Return the sound fields of the status; an empty dict if the file is missing or unreadable."""
    return {name: value for name, value in read_small_json(folder / _NAME).items() if _is_sound(name, value)}


def update_status(folder: Path, **fields: Any) -> None:
    """Update fields of a run, such as `step`, `saved_step` or `best`, and the time. A folder without a run stays so.

    The step stays after another rank has reported a failure. An OSError is ignored: other files of the run report a
    full disk.
    """
    with _lock, suppress(OSError):
        previous, has_step = read_status(folder), "step" in fields
        if previous.get("state") == "running" or (previous and not has_step):
            _write(folder, {**previous, **fields, "updated": _now()}, in_place=not has_step)


def _write(folder: Path, status: dict[str, Any], in_place: bool = True) -> None:
    """Write the status, on a full disk over the old one if `in_place`. Raises OSError."""
    path, text = folder / _NAME, json.dumps(status, indent=2) + "\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        if not in_place or error.errno not in _NO_SPACE or not path.is_file():
            raise
        # The disk has no space for a second file, but the old file has a block. A reader may find a part for a moment.
        # That is better than an outdated status forever: a job that finds `preempted` queues itself again.
        with path.open("r+") as file:
            file.write(text)
            file.truncate()


def _is_sound(name: str, value: Any) -> bool:
    """Return whether a field is known and None or of its type. A dict must have plain values."""
    values = value.values() if isinstance(value, dict) else ()
    is_plain = all(isinstance(one, str | int | float | None) for one in values)
    return name in _TYPES and is_plain and (value is None or isinstance(value, _TYPES[name]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
