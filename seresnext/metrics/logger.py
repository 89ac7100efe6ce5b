"""The logger of a run: every event goes to all sinks and to the console. Rank 0 logs, other ranks are silent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seresnext.distributed import World
from seresnext.metrics.console import Bar, Console
from seresnext.metrics.jsonlines import JsonLines
from seresnext.metrics.sink import RunStart, Sink
from seresnext.metrics.status import StatusFile
from seresnext.metrics.tensorboard import TensorBoard

# The sinks of every run, and the functions that open each sink at the start of a run.
SINKS: dict[str, Callable[[RunStart], Sink]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "status": StatusFile,
}


class RunLogger:
    """Logger of events and owner of the progress bars.

    The console is not a sink: the console also shows bars, the remaining time and texts that replace an event.

    folder: the run folder; without a folder (a dry run) the logger only prints.
    num_classes: with 5 classes or fewer the console omits top-5 accuracy, which is then always 100 %.
    """

    def __init__(self, folder: Path | None, console: Console, world: World, num_classes: int | None = None) -> None:
        self.console = console
        self._hidden = ("top5",) if num_classes and num_classes <= 5 else ()
        self._bar: Bar | None = None
        self._sinks: list[Sink] = []
        self._folder = folder if world.is_first else None

    def open(self, step: int, evaluated: int, logged: int = 0) -> None:
        """Open the sinks of a run that starts after `step` completed steps. `RunStart` explains the arguments.

        Raises UsageError if a file of the run folder cannot be used.
        """
        if self._folder is not None:
            start = RunStart(self._folder, step, evaluated, logged, self.console.warn)
            self._sinks = [open_sink(start) for open_sink in SINKS.values()]

    def write(
        self,
        event: Mapping[str, Any],
        seconds_left: float | None = None,
        text: str | None = None,
        only_log: bool = False,
    ) -> None:
        """Send an event to all sinks, and print the event with the remaining time, or `text` if given.

        `only_log`: the text goes to the log file alone. The README lists the fields of events.
        """
        for sink in self._sinks:
            sink.write(event)
        if text is None:
            self.console.print_event({k: v for k, v in event.items() if k not in self._hidden}, seconds_left)
        elif only_log:
            self.console.log(text)
        else:
            self.console.print(text)
        if event["event"] == "validate" and not math.isfinite(event["loss"]):
            self.console.warn(
                f"the validation loss after step {event['step']} is {event['loss']} ({event['weights']} weights). The "
                "usual causes are a learning rate that is too high (optimizer.lr), too little warm-up "
                "(schedule.warmup) or fp16"
            )

    @contextmanager
    def training(self, step: int, total: int) -> Iterator[None]:
        """Show the bar of the whole run while the block runs, and close the sinks at the end."""
        try:
            with self.console.bar("train", total, step) as self._bar:
                yield
        finally:
            self._bar = None
            self.close()

    def advance(self) -> None:
        """Advance the bar of the run by one step."""
        if self._bar is not None:
            self._bar.advance()

    @contextmanager
    def validation(self, rounds: int) -> Iterator[Callable[[], None]]:
        """Show the bar of a validation while the block runs. Yields the function that advances the bar."""
        with self.console.bar("validate", rounds) as bar:
            yield bar.advance

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            sink.close()
