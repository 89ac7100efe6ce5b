"""The sink that writes TensorBoard files."""

import os
import socket
import textwrap
import time
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event as Record  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from seresnext.metrics.sink import Event, RunStart, charts, flatten
from seresnext.recipe.show import to_yaml


class TensorBoard:
    """A TensorBoard file with the charts of the events, the recipe as text, and the recipe's keys as hyperparameters.

    TensorBoard itself pairs the hyperparameters with the last point of each chart. Each event is written at once.

    torch's SummaryWriter is not used: it writes from a thread, where an error of a full disk cannot be caught, and
    loader workers are forked from this process, which should have no other threads.
    """

    def __init__(self, start: RunStart) -> None:
        self._folder = folder = start.folder / "tensorboard"
        self._start = start
        self._file: BinaryIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files of a folder in the order of the names, so the name starts with the time.
            name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            self._file = (folder / name).open("xb")
        except OSError as error:
            self._warn_about(error)
        self._append(Record(wall_time=time.time(), file_version="brain.Event:2"))
        if start.step:  # TensorBoard hides the points of earlier files from this record's step on.
            session = SessionLog(status=SessionLog.START)
            self._append(Record(wall_time=time.time(), step=start.step + 1, session_log=session))
        if start.recipe:
            hyperparameters = hparams_pb(flatten(start.recipe), trial_id=start.folder.resolve().name).value
            code = textwrap.indent(to_yaml(dict(start.recipe)), "    ")  # Four spaces are code in Markdown.
            self._add(start.step, *summary.text("recipe", code).value, *hyperparameters)

    def write(self, event: Event) -> None:
        """Write the charts of the event at the event's step, or the picture that the event names."""
        numbers = charts(event, self._start.recipe)
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        if event["event"] == "picture":
            path = self._start.folder / event["file"]
            with Image.open(path) as image:
                size = {"width": image.width, "height": image.height, "colorspace": 3}
            image = Summary.Image(encoded_image_string=path.read_bytes(), **size)
            values = [Summary.Value(tag=f"train/{path.stem}", image=image)]
        if values:
            self._add(event["step"], *values)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk, which a warning has reported
                self._file.close()
            self._file = None

    def _add(self, step: int, *values: Any) -> None:
        self._append(Record(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _append(self, record: Any) -> None:
        if self._file is None:
            return
        try:
            RecordWriter(self._file).write(record.SerializeToString())
            self._file.flush()
        except OSError as error:
            self.close()
            self._warn_about(error)

    def _warn_about(self, error: OSError) -> None:
        reason = f"cannot be written ({error.strerror}); training continues without them"
        self._start.report(f"warning: TensorBoard files in {self._folder} {reason}")
