"""The sink that writes `metrics.jsonl`, the events of a run for programs."""

import errno
import json
import math
import os
from pathlib import Path

from seresnext.errors import UsageError
from seresnext.files import open_regular
from seresnext.metrics.sink import Event, RunStart, Sink

_MAX_BYTES = 1 << 30  # about four million lines


def check_metrics(path: Path) -> None:
    """Raise OSError for a `metrics.jsonl` that cannot be read whole: a device, a pipe, more than 1 GiB."""
    if not os.path.lexists(path):
        return
    with os.fdopen(open_regular(path), "rb"):
        size = path.stat().st_size
    if size > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"{size:,} bytes, more than {_MAX_BYTES:,}")
    if not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


class JsonLines(Sink):
    """A file with one JSON object a line. `write` passes each whole line to the system before it returns."""

    def __init__(self, start: RunStart) -> None:
        """Remove the lines that the run will write again.

        Warns if lines up to the start are missing. Raises UsageError if the file cannot be read or written.
        """
        self._path = path = start.folder / "metrics.jsonl"
        self._report, self._is_reported = start.report, False
        try:
            check_metrics(path)
            is_complete = self._rewind(start)
        except OSError as error:
            raise UsageError(f"{path} cannot be read or written ({error.strerror}); move the file away") from None
        if not is_complete:
            start.report(f"warning: {path} lacks lines of the steps up to {start.step}; the curves have a gap there")

    def write(self, event: Event) -> None:
        """Append an event. Floats keep every digit. NaN and infinity become null, because JSON lacks both."""
        lost = [name for name, value in event.items() if isinstance(value, float) and not math.isfinite(value)]
        try:
            self._append(json.dumps({**event, **dict.fromkeys(lost)}, allow_nan=False) + "\n")
        except OSError as error:
            if not self._is_reported:
                reason = f"cannot be written ({error.strerror}); training continues without these lines"
                self._report(f"warning: {self._path} {reason}")
            self._is_reported = True

    def _rewind(self, start: RunStart) -> bool:
        """Remove the lines that a resumed run writes again. Return whether the remaining lines are complete.

        Removed are lines of steps after `start.step`, validations of steps after `start.evaluated`, and lines that are
        no events. A rename replaces the file. Complete lines have the `train` event of step `start.logged` and the
        validation of step `start.evaluated`, and no line was garbage. A crash may leave a partial last line, which is
        not garbage.
        """
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        kept, has_garbage, last = [], False, {"train": 0, "validate": 0}
        for line in lines:
            event = _parse_event(line)
            has_garbage |= event is None and line.endswith(b"\n")
            if event and event["step"] <= (start.evaluated if event["event"] == "validate" else start.step):
                kept.append(line)
                last[event["event"]] = event["step"]
        if len(kept) < len(lines):
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            with temporary.open("wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        return not has_garbage and last["train"] >= start.logged and last["validate"] >= start.evaluated

    def _append(self, line: str) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a") as file:
                file.write(line)
        except OSError:
            os.truncate(self._path, size)  # An almost full disk takes a part of the line.
            raise


def _parse_event(line: bytes) -> Event | None:
    """Return the event of a line, or None for a line that is not a whole event."""
    try:
        event = json.loads(line)
        is_event = isinstance(event["step"], int) and isinstance(event["event"], str) and line.endswith(b"\n")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return event if is_event else None
