"""The sink that writes `metrics.jsonl`, the events of a run for programs."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seresnext.errors import UsageError
from seresnext.metrics.sink import Event, RunStart

_MAX_BYTES = 1 << 30  # about four million lines


def check_metrics(path: Path) -> None:
    """Raise OSError for a `metrics.jsonl` that cannot be read whole: a device, a pipe, more than 1 GiB."""
    if not os.path.lexists(path):
        return
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, more than {_MAX_BYTES:,}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


class JsonLines:
    """A file with one JSON object a line. `write` passes each whole line to the system before it returns."""

    def __init__(self, start: RunStart) -> None:
        """Remove the lines that the run will write again.

        Warns if lines up to the start are missing. Raises UsageError if the file cannot be read or written.
        """
        self._path = path = start.folder / "metrics.jsonl"
        self._warn = start.warn
        self._warned = False
        try:
            check_metrics(path)
            is_complete = self._rewind(start)
        except OSError as error:
            raise UsageError(f"{path} cannot be read or written ({error.strerror}); move the file away") from None
        if not is_complete:
            start.warn(f"{path} lacks lines of the steps up to {start.step}; the curves have a gap there")

    def write(self, event: Event) -> None:
        """Append an event. Floats keep every digit. NaN and infinity become null, because JSON lacks both."""
        line = json.dumps({name: _json_value(value) for name, value in event.items()}, allow_nan=False) + "\n"
        try:
            self._append(line.encode())
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"{self._path} cannot be written ({error.strerror}); training continues without these lines")

    def close(self) -> None:
        """Do nothing: the file is open only inside `write`."""

    def _rewind(self, start: RunStart) -> bool:
        """Remove the lines that a resumed run writes again. Return whether the remaining lines are complete.

        Removed are lines of steps after `start.step`, validations of steps after `start.evaluated`, and lines that are
        no events. A rename replaces the file. Complete lines have the `train` event of step `start.logged` and the
        validation of step `start.evaluated`, and no line was garbage. A crash may leave a partial last line, which is
        not garbage.
        """
        last = {"train": 0, "validate": 0}
        removed = garbage = 0
        for line, event, is_kept in self._lines(start):
            removed += not is_kept
            garbage += event is None and line.endswith(b"\n")
            if event and is_kept:
                last[event["event"]] = event["step"]
        if removed:
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            with temporary.open("wb") as file:
                file.writelines(line for line, _, is_kept in self._lines(start) if is_kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        return not garbage and last["train"] >= start.logged and last["validate"] >= start.evaluated

    def _lines(self, start: RunStart) -> Iterator[tuple[bytes, Event | None, bool]]:
        """Yield each line, its event (None for a line that is no event), and whether the file keeps the line."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for line in file:
                event = _parse_event(line)
                last_kept = start.evaluated if event and event["event"] == "validate" else start.step
                yield line, event, event is not None and event["step"] <= last_kept

    def _append(self, line: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while line:  # On an almost full disk a part is written, and the next write raises the error.
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(size)
                raise


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse_event(line: bytes) -> Event | None:
    """Return the event of a line, or None for a line that is not a whole event."""
    try:
        event = json.loads(line)
        is_event = isinstance(event["step"], int) and isinstance(event["event"], str) and line.endswith(b"\n")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return event if is_event else None
