"""The sink that writes TensorBoard files."""

from __future__ import annotations

import io
import os
import socket
import time
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event as Record  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from seresnext.metrics.sink import Event, RunStart


class TensorBoard:
    """A TensorBoard file with scalars named `<event>/<field>`: train/loss, train/lr, validate/top1.

    A validation of EMA weights has another event name: validate_ema/top1. Each event is written at once.

    torch's SummaryWriter is not used: it writes from a thread, where an error of a full disk cannot be caught, and
    loader workers are forked from this process, which should have no other threads.
    """

    def __init__(self, start: RunStart) -> None:
        self._folder = folder = start.folder / "tensorboard"
        self._warn = start.warn
        self._file: BinaryIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files of a folder in the order of the names, so the name starts with the time.
            name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            self._file = (folder / name).open("xb", buffering=0)
        except OSError as error:
            self._warn_about(error)
        self._append(Record(wall_time=time.time(), file_version="brain.Event:2"))
        if start.step:  # TensorBoard hides the points of earlier files from this record's step on.
            session = SessionLog(status=SessionLog.START)
            self._append(Record(wall_time=time.time(), step=start.step + 1, session_log=session))

    def write(self, event: Event) -> None:
        """Write every number of the event, except step and epoch, at the event's step."""
        weights = event.get("weights", "model")
        group = event["event"] if weights == "model" else f"{event['event']}_{weights}"
        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for name, value in event.items()
            if name not in ("step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool)
        ]
        self._append(Record(wall_time=time.time(), step=event["step"], summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, record: Any) -> None:
        if self._file is None:
            return
        # Imported late: the import takes 0.25 s, and only rank 0 writes.
        from tensorboard.summary.writer.record_writer import RecordWriter

        framed = io.BytesIO()
        RecordWriter(framed).write(record.SerializeToString())
        rest = framed.getvalue()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.close()
            self._warn_about(error)

    def _warn_about(self, error: OSError) -> None:
        self._warn(
            f"TensorBoard files in {self._folder} cannot be written ({error.strerror}); training continues without them"
        )
