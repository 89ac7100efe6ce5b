"""Everything a run says: to metrics file and status, to TensorBoard, to the terminal. Silent on ranks other than 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seresnext.distributed import World
from seresnext.errors import UsageError
from seresnext.metrics.console import Bar, Console
from seresnext.metrics.sinks import JsonLines, TensorBoard
from seresnext.metrics.status import update_step


class RunLogger:
    """Writer of all events, and of the progress bar. With no folder (a dry run) the journal only prints.

    With `num_classes` of 5 or fewer the terminal and the log have no top-5 accuracy, which is then always 100 %.
    """

    def __init__(self, folder: Path | None, console: Console, world: World, num_classes: int | None = None) -> None:
        self.console = console
        self._hidden = ("top5",) if num_classes and num_classes <= 5 else ()
        self._bar: Bar | None = None
        self._writers: list[JsonLines | TensorBoard] = []
        self._folder = folder if world.is_first else None

    def open(self, step: int, evaluated: int, logged: int = 0) -> None:
        """Open the files for a run that starts after `step` completed steps and validated last after `evaluated`.

        Lines of later steps and validations are removed: the run does both again. A warning is printed where lines up
        to the last `train` event, of step `logged`, are missing.
        """
        if self._folder is None:
            return
        path = self._folder / "metrics.jsonl"
        try:
            lines = JsonLines(path, self.console.line)
            lines.truncate_after(step, evaluated)
            if not lines.reaches(logged, evaluated):
                self.console.line(f"warning: {path} lacks lines of the steps up to {step}; the curves have a gap there")
        except OSError as error:
            raise UsageError(f"{path} cannot be read or written ({error.strerror}); move the file away") from None
        tensorboard = TensorBoard(self._folder / "tensorboard", step + 1 if step else None, self.console.line)
        self._writers = [lines, tensorboard]

    def write(self, event: Mapping[str, Any], seconds_left: float | None = None, text: str | None = None) -> None:
        """Write an event, as design and README name its fields, and say it with the time left, or `text` instead."""
        for writer in self._writers:
            writer.write(event)
        if self._folder and event["event"] == "train":
            update_step(self._folder, event["step"])
        if text is None:
            self.console.report({k: v for k, v in event.items() if k not in self._hidden}, seconds_left)
        else:
            self.console.line(text)
        if event["event"] == "validate" and not math.isfinite(event["loss"]):
            self.console.line(
                f"warning: the validation loss after step {event['step']} is {event['loss']} ({event['weights']} "
                "weights). The usual causes are a learning rate that is too high (optimizer.lr), too little warm-up "
                "(schedule.warmup) or fp16"
            )

    @contextmanager
    def training(self, step: int, total: int) -> Iterator[None]:
        """Show the bar of the whole run while the block runs, and close the files at its end."""
        try:
            with self.console.bar("train", total, step) as self._bar:
                yield
        finally:
            self._bar = None
            self.close()

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.advance()

    @contextmanager
    def validation(self, rounds: int) -> Iterator[Callable[[], None]]:
        """Show the bar of a validation while the block runs; gives the function that moves it on."""
        with self.console.bar("validate", rounds) as bar:
            yield bar.advance

    def close(self) -> None:
        """Close the files; every event is in them since it was written."""
        for writer in self._writers:
            if isinstance(writer, TensorBoard):
                writer.close()
