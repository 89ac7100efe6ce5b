"""Where measurements go: `metrics.jsonl` for programs, TensorBoard for eyes.

Both take the same events, `{"event": "train", "step": ..., "epoch": ..., "loss": ..., ...}`. Neither ends a run: what
cannot be written is said once through `warn`, and training goes on.
"""

from __future__ import annotations

import errno
import io
import json
import math
import mmap
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event as Record  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

Event = Mapping[str, Any]
Warn = Callable[[str], None]
_MOST_BYTES = 1 << 30  # of a file of metrics: some four million lines


def check_metrics(path: Path) -> None:
    """Raise OSError for a `metrics.jsonl` that cannot be read whole: a device, a pipe, more than 1 GiB."""
    if not os.path.lexists(path):
        return
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, more than {_MOST_BYTES:,}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


class JsonLines:
    """A file of one JSON object a line, whole lines only, each given to the system before `write` returns."""

    def __init__(self, path: Path, warn: Warn) -> None:
        """Open the file. Raises OSError if the file cannot be read whole: a device, a pipe, more than 1 GiB."""
        self._path = path
        self._warn = warn
        self._warned = False
        self._has_all = True
        self._last: dict[str, int] = {}
        check_metrics(path)
        self._cut_half_line()

    def write(self, event: Event) -> None:
        """Append an event. Floats keep every digit; NaN and infinity, which JSON does not know, become null."""
        line = json.dumps({name: _json_value(value) for name, value in event.items()}, allow_nan=False) + "\n"
        try:
            self._append(line.encode())
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"{self._path} cannot be written ({error.strerror}); training goes on without these lines")

    def truncate_after(self, step: int, evaluated: int) -> int:
        """Remove the lines of later steps than `step` (all lines for -1), of validations after later ones than
        `evaluated`, and those that are not JSON; how many.

        For a resume: the run does all of that again. The file is replaced by a rename.
        """
        removed = sum(not is_kept for _, is_kept in self._sorted(step, evaluated))
        if removed:
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            with temporary.open("wb") as file:
                file.writelines(line for line, is_kept in self._sorted(step, evaluated) if is_kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        return removed

    def reaches(self, logged: int, evaluated: int) -> bool:
        """Return whether `truncate_after` found the `train` event of step `logged`, the validation after step
        `evaluated` (0 for none), and no line that is not JSON.
        """
        return self._has_all and self._last.get("train", 0) >= logged and self._last.get("validate", 0) >= evaluated

    def _sorted(self, step: int, evaluated: int) -> Iterator[tuple[bytes, bool]]:
        """Yield each line, and whether `truncate_after` keeps the line."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for line in file:
                event = _event_of(line)
                is_kept = event is not None and event["step"] <= (evaluated if event["event"] == "validate" else step)
                if event is None:
                    self._has_all = False
                elif is_kept:
                    self._last[event["event"]] = event["step"]
                yield line, is_kept

    def _append(self, line: bytes) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(file).st_size
            try:
                written = os.write(file, line)
                if written < len(line):  # A disk that fills up takes a part first.
                    os.write(file, line[written:])
            except OSError:
                os.ftruncate(file, size)
                raise
        finally:
            os.close(file)

    def _cut_half_line(self) -> None:
        """Remove what a crash left after the last line end, or the next line would be joined to it."""
        if not self._path.exists() or not self._path.stat().st_size:
            return
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            whole = content.rfind(b"\n") + 1
            if whole == len(content):
                return
        os.truncate(self._path, whole)


class TensorBoard:
    """Scalars named `<event>/<field>`: train/loss, train/lr, validate/top1 and so on, each written at once.

    A validation of EMA weights has another event name: validate_ema/top1.

    The file is written here with TensorBoard's own records rather than through torch's SummaryWriter, which writes from
    a thread: a full disk there is a traceback that nobody can catch, and loader workers are forked from this process.

    `purge_step`: TensorBoard hides what an earlier process wrote from this step on; the restored step plus one.
    """

    def __init__(self, folder: Path, purge_step: int | None, warn: Warn) -> None:
        self._folder = folder
        self._warn = warn
        self._file: BinaryIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads a folder's files in the order of their names, so the time comes first.
            name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            self._file = (folder / name).open("xb", buffering=0)
        except OSError as error:
            self._give_up(error)
        self._append(Record(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._append(Record(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, event: Event) -> None:
        """Write every number of the event but step and epoch at its step."""
        weights = event.get("weights", "model")
        group = event["event"] if weights == "model" else f"{event['event']}_{weights}"
        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for name, value in event.items()
            if name not in ("step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool)
        ]
        summary = Summary(value=values)
        self._append(Record(wall_time=time.time(), step=event["step"], summary=summary))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, record: Any) -> None:
        if self._file is None:
            return
        # Here, since it takes a quarter of a second, and of many ranks one writes.
        from tensorboard.summary.writer.record_writer import RecordWriter

        framed = io.BytesIO()
        RecordWriter(framed).write(record.SerializeToString())
        rest = framed.getvalue()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.close()
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._warn(
            f"TensorBoard files in {self._folder} cannot be written ({error.strerror}); training goes on without them"
        )


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _event_of(line: bytes) -> Event | None:
    """Return the event of a line, or None for a line that is no whole event."""
    try:
        event = json.loads(line)
        is_event = isinstance(event["step"], int) and isinstance(event["event"], str) and line.endswith(b"\n")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return event if is_event else None
