"""The sink that writes TensorBoard files."""

from __future__ import annotations

import io
import os
import socket
import time
from typing import Any, BinaryIO

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event as Record  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,  # pyright: ignore[reportAttributeAccessIssue]
    SessionEndInfo,  # pyright: ignore[reportAttributeAccessIssue]
    SessionStartInfo,  # pyright: ignore[reportAttributeAccessIssue]
)

from seresnext.metrics.sink import Event, RunStart, charts, flatten
from seresnext.metrics.status import read_status
from seresnext.recipe.show import to_yaml

# The sections of a recipe that decide the result. The page HPARAMS compares runs by their keys.
_COMPARED = (
    "model", "data", "augment", "mix", "batch", "length", "optimizer", "schedule", "loss", "ema", "evaluation",
    "early_stop", "runtime",
)  # fmt: skip


class TensorBoard:
    """A TensorBoard file with the charts of the events, the recipe as text, and the recipe's keys as hyperparameters.

    TensorBoard itself pairs the hyperparameters with the last point of each chart. Each event is written at once.

    torch's SummaryWriter is not used: it writes from a thread, where an error of a full disk cannot be caught, and
    loader workers are forked from this process, which should have no other threads.
    """

    def __init__(self, start: RunStart) -> None:
        self._folder = folder = start.folder / "tensorboard"
        self._start, self._last = start, start.step
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
        if start.recipe:
            self._add(start.step, _text("recipe", to_yaml(dict(start.recipe))), self._session_start())

    def write(self, event: Event) -> None:
        """Write the charts of the event at the event's step, or the picture that the event names."""
        if event["event"] == "picture":
            self._add_picture(event)
            return
        values = [
            Summary.Value(tag=name, simple_value=value) for name, value in charts(event, self._start.recipe).items()
        ]
        if values:
            self._add(event["step"], *values)

    def close(self) -> None:
        """Write how the run ended, and close the file."""
        if self._file is not None and self._start.recipe:
            state = str(read_status(self._start.folder).get("state"))
            end = {"finished": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}.get(state, "STATUS_UNKNOWN")
            info = SessionEndInfo(status=Status.Value(end), end_time_secs=time.time())
            self._add(self._last, _hparams(metadata.SESSION_END_INFO_TAG, session_end_info=info))
        self._close()

    def _session_start(self) -> Any:
        values = {key: value for key, value in self._start.recipe.items() if key in _COMPARED}
        info = SessionStartInfo(group_name=self._start.folder.resolve().name, start_time_secs=time.time())
        for key, value in flatten(values).items():
            kind = (
                "bool_value"
                if isinstance(value, bool)
                else "string_value"
                if isinstance(value, str)
                else "number_value"
            )
            setattr(info.hparams[key], kind, value)
        return _hparams(metadata.SESSION_START_INFO_TAG, session_start_info=info)

    def _add_picture(self, event: Event) -> None:
        path = self._start.folder / event["file"]
        with Image.open(path) as image:
            size = {"width": image.width, "height": image.height, "colorspace": 3}
        picture = Summary.Image(encoded_image_string=path.read_bytes(), **size)
        self._add(event["step"], Summary.Value(tag=f"train/{path.stem}", image=picture))

    def _add(self, step: int, *values: Any) -> None:
        self._last = step
        self._append(Record(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _close(self) -> None:
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
            self._close()
            self._warn_about(error)

    def _warn_about(self, error: OSError) -> None:
        self._start.warn(
            f"TensorBoard files in {self._folder} cannot be written ({error.strerror}); training continues without them"
        )


def _hparams(tag: str, **content: Any) -> Any:
    """Return a record of TensorBoard's plugin for hyperparameters."""
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(HParamsPluginData(**content)))


def _text(tag: str, text: str) -> Any:
    """Return a text as a summary. Four spaces at the start of a line are code in Markdown."""
    from torch.utils.tensorboard import summary

    return summary.text(tag, "".join(f"    {line}\n" for line in text.splitlines())).value[0]
