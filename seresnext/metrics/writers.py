"""Where measurements go: `metrics.jsonl` for programs, TensorBoard for eyes.

Both take the same events, `{"event": "train", "step": ..., "epoch": ..., "loss": ..., ...}`. Neither ends a run: what
cannot be written is said once through `warn`, and training goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
Warn = Callable[[str], None]


class JsonLines:
    """A file of one JSON object a line, whole lines only, each given to the system before `write` returns."""

    def __init__(self, path: Path, warn: Warn) -> None:
        self._path = path
        self._warn = warn
        self._warned = False
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

    def truncate_after(self, step: int) -> int:
        """Remove the lines of later steps than `step` (all lines for -1) and those that are not JSON; how many.

        For a resume: the run goes through those steps again. The file is replaced by a rename.
        """
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        kept = [line for line in lines if (found := _step_of(line)) is not None and found <= step]
        if len(kept) < len(lines):
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            with temporary.open("wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        return len(lines) - len(kept)

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
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self._path, content.rfind(b"\n") + 1)


class TensorBoard:
    """Scalars named `<event>/<field>`: train/loss, train/lr, validate/top1 and so on.

    Any failure of the library ends the writing and nothing else; with TensorFlow installed its errors are not OSErrors.
    `purge_step`: TensorBoard hides what an earlier process wrote from this step on; the restored step plus one.
    """

    def __init__(self, folder: Path, purge_step: int | None, warn: Warn) -> None:
        # Imported here, since it takes a second, of which ranks other than 0 and validation have no use.
        from torch.utils.tensorboard import SummaryWriter

        self._warn = warn
        self._folder = folder
        self._writer: SummaryWriter | None = None
        try:
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except Exception as error:
            self._give_up(error)

    def write(self, event: Event) -> None:
        """Write every number of the event but step and epoch at its step."""
        if self._writer is None:
            return
        try:
            for name, value in event.items():
                if name not in ("step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool):
                    self._writer.add_scalar(f"{event['event']}/{name}", value, event["step"])
            self._writer.flush()
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        self._warn(f"TensorBoard files in {self._folder} cannot be written ({error}); training goes on without them")


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: bytes) -> int | None:
    """The step of a line; None for a line that is not a whole JSON object with one."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) and line.endswith(b"\n") else None
