"""`status.json` of a run folder: how the run is, for whoever sees only the folder.

torchrun hides its workers' exit codes, so this is where outcomes stand, and what a scheduler's job goes by.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seresnext.distributed import World

_NAME = "status.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_status(folder: Path, world: World, state: str, step: int, reason: str | None) -> None:
    """Write the status. A full disk has room for it where there was one before; else a warning says what is wrong."""
    try:
        _write(folder, {"state": state, "step": step, "reason": reason, **_writer(), "world_size": world.size})
    except OSError as error:
        # The outcome itself counts more than the note of it, and a full disk has a message of its own.
        print(f"warning: {folder / _NAME} cannot be written ({error.strerror})", file=sys.stderr)


def read_status(folder: Path) -> dict[str, Any]:
    """What the status says; empty when there is none or it cannot be read."""
    try:
        found = json.loads((folder / _NAME).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note_step(folder: Path, step: int) -> None:
    """Bring the step of a run that goes on up to date.

    A run that another rank has just said to have failed stays so. What cannot be written is left: the step is no
    outcome, and the next log says what is wrong with the disk.
    """
    known = read_status(folder)
    if known.get("state") == "running":
        with suppress(OSError):
            write_atomically(folder / _NAME, _text({**known, "step": step, "updated": _now()}))


def note_refusal(folder: Path, reason: str) -> None:
    """Let the status of a run say that a start was refused; without one nothing is written. Raises OSError.

    Else it would read `preempted` for ever, and a job that goes by that would queue itself again without end.
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


def _writer() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "updated": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _text(status: dict[str, Any]) -> str:
    return json.dumps(status, indent=2) + "\n"
