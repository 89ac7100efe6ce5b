"""The sink that writes `metrics.jsonl`, the events of a run for programs."""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

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

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """Prepare the file for appending. Raises OSError for a file that cannot be read whole."""
        self._path = path
        self._warn = warn
        self._warned = False
        check_metrics(path)
        self._remove_partial_line()

    @classmethod
    def open(cls, start: RunStart) -> Self:
        """Open `metrics.jsonl` and remove the lines that the run will write again.

        Warns if lines up to the start are missing. Raises UsageError if the file cannot be read or written.
        """
        path = start.folder / "metrics.jsonl"
        try:
            lines = cls(path, start.warn)
            is_complete = lines.rewind(start.step, start.evaluated, start.logged)
        except OSError as error:
            raise UsageError(f"{path} cannot be read or written ({error.strerror}); move the file away") from None
        if not is_complete:
            start.warn(f"{path} lacks lines of the steps up to {start.step}; the curves have a gap there")
        return lines

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

    def rewind(self, step: int, evaluated: int, logged: int) -> bool:
        """Remove the lines that a resumed run writes again. Returns whether the remaining lines are complete.

        Removed are lines of steps after `step`, validations of steps after `evaluated`, and lines that are no events. A
        rename replaces the file. Complete lines have the `train` event of step `logged` and the validation of step
        `evaluated` (0 for none), and had no line that was no event.
        """
        last = {"train": 0, "validate": 0}
        removed = damaged = 0
        for _, event, is_kept in self._lines(step, evaluated):
            removed += not is_kept
            damaged += event is None
            if event and is_kept:
                last[event["event"]] = event["step"]
        if removed:
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            with temporary.open("wb") as file:
                file.writelines(line for line, _, is_kept in self._lines(step, evaluated) if is_kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        return not damaged and last["train"] >= logged and last["validate"] >= evaluated

    def _lines(self, step: int, evaluated: int) -> Iterator[tuple[bytes, Event | None, bool]]:
        """Yield each line, its event (None for a line that is no event), and whether `rewind` keeps the line."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for line in file:
                event = _parse_event(line)
                last_kept = evaluated if event and event["event"] == "validate" else step
                yield line, event, event is not None and event["step"] <= last_kept

    def _append(self, line: bytes) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(file).st_size
            try:
                written = os.write(file, line)
                if written < len(line):  # The disk is almost full. The next write raises the error.
                    os.write(file, line[written:])
            except OSError:
                os.ftruncate(file, size)
                raise
        finally:
            os.close(file)

    def _remove_partial_line(self) -> None:
        """Remove a partial last line, which a crash may leave. The next line would be appended to this part."""
        if not self._path.exists() or not self._path.stat().st_size:
            return
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            whole = content.rfind(b"\n") + 1
            if whole == len(content):
                return
        os.truncate(self._path, whole)


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
