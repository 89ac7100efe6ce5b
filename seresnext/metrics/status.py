"""`status.json` of a run folder: how the run is, for whoever sees only the folder.

torchrun hides its workers' exit codes, so this is where outcomes stand, and what a scheduler's job goes by.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seresnext.distributed import World

_NAME = "status.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_MOST_BYTES = 1 << 20  # of a small JSON file of a run folder
# Fields that stay when the state changes, and the types of each field. The file of a stranger may hold other types.
_LASTING: dict[str, tuple[type, ...]] = {
    "saved_step": (int,),
    "total_steps": (int,),
    "best": (dict,),
    "started": (str,),
}
# Two threads of a process change the file: the training, and the thread that writes checkpoints.
_changing = threading.RLock()


def write_status(folder: Path, world: World, state: str, step: int, reason: str | None) -> None:
    """Write the status. The state `running` sets the start time to now. Fields that `update_progress` wrote stay.

    A full disk has room for a new status in place of an old one. Any other error becomes a warning.
    """
    try:
        with _changing:
            known = read_status(folder)
            status = {"state": state, "step": step, "reason": reason, **_writer(), "world_size": world.size}
            status |= {name: known.get(name) for name in _LASTING}
            if state == "running":
                status["started"] = status["updated"]
            _write(folder, status)
    except OSError as error:
        # The outcome itself counts more than the note of it, and a full disk has a message of its own.
        print(f"warning: {folder / _NAME} cannot be written ({error.strerror})", file=sys.stderr)


def read_status(folder: Path) -> dict[str, Any]:
    """What the status says; empty when there is none or it cannot be read."""
    found = read_small_json(folder / _NAME)
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if _is_sound(name, value)}


def read_small_json(path: Path) -> Any:
    """Return the content of a JSON file of a run folder, or None if the file cannot be read.

    Too large a file, a device or a pipe (which may have no end) and deep nesting count as unreadable.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            return None
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def update_step(folder: Path, step: int) -> None:
    """Update the step of a running run."""
    update_progress(folder, step=step)


def update_progress(folder: Path, **fields: Any) -> None:
    """Update fields of a run: `step`, `saved_step`, `total_steps`, `best`.

    After another rank has reported a failure, state and step stay. An error of the disk is ignored: the fields are no
    outcome, and the next write to the log reports the error.
    """
    with _changing, suppress(OSError):
        known = read_status(folder)
        if known.get("state") == "running" or (known and "step" not in fields):
            write_atomically(folder / _NAME, _text({**known, **fields, "updated": _now()}))


def mark_refused(folder: Path, reason: str) -> None:
    """Write into the status of a run that a start was refused. A missing status is not made. Raises OSError.

    A status that stayed `preempted` would make a scheduler's job queue again without end.
    """
    known = read_status(folder)
    if known:
        _write(folder, {**known, "state": "failed", "reason": reason, **_writer()})


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # A write, as opposed to an opening, does not say of what.
        raise


def _write(folder: Path, status: dict[str, Any]) -> None:
    path, text = folder / _NAME, _text(status)
    try:
        write_atomically(path, text)
    except OSError as error:
        if error.errno not in _NO_SPACE or not path.is_file():
            raise
        # There is no space for a second file, but the old one has its block: better a moment in which a reader finds
        # a part than an outcome of yesterday that is believed for ever.
        with path.open("r+") as file:
            file.write(text)
            file.truncate()


def _is_sound(name: str, value: Any) -> bool:
    """Return whether a field has the right type. A dict must have plain values."""
    if isinstance(value, dict):
        return name == "best" and all(isinstance(one, str | int | float | None) for one in value.values())
    return not isinstance(value, list) and (value is None or isinstance(value, _LASTING.get(name, object)))


def _writer() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "updated": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _text(status: dict[str, Any]) -> str:
    return json.dumps(status, indent=2) + "\n"
