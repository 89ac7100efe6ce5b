"""The terminal: bars where there is one, plain lines where there is none, silence on ranks other than 0.

Everything said also goes to `log.txt`, with the time. Losing the terminal (a closed pipe, a dropped connection) costs
the run nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from threading import RLock
from typing import Any, Self, TextIO

from tqdm import tqdm

from seresnext.metrics.speed import format_seconds
from seresnext.printable import for_terminal

# In the order in which a line has them; other fields of an event are for programs.
_FIELD_TEXTS = {
    "loss": "loss {:.4f}",
    "top1": "top-1 {:.2f} %",
    "top5": "top-5 {:.2f} %",
    "lr": "lr {:.4g}",
    "images_per_second": "{:.1f} images/s",
    "data_wait": "data wait {:.3f} s",
    "grad_norm": "gradient norm {:.3f}",
    "eta": "eta {}",
    "epoch": "epoch {:.2f}",
}
_LINE_FIELDS = tuple(name for name in _FIELD_TEXTS if name != "epoch")
_BAR_FIELDS = ("loss", "images_per_second", "eta", "lr", "epoch")  # A narrow terminal cuts the last ones off.
_BAR_WITH_TIMES = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_BAR_WITH_TEXT = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"


class Console:
    """Says things on `stream` (standard output) and in the log file. A disabled one, for other ranks, says nothing."""

    def __init__(self, enabled: bool, log: Path | None = None, stream: TextIO | None = None) -> None:
        self._enabled = enabled
        self._log = log
        self._terminal = _LosableStream(stream or sys.stdout)
        self._bars: list[Bar] = []
        self.on_terminal = enabled and self._terminal.isatty()

    def line(self, text: str) -> None:
        """Say a line (or several), above the bars if there are any."""
        if self._enabled:
            text = for_terminal(text)
            self._write_log(text)
            _Tqdm.write(text, file=self._terminal)
            self._terminal.flush()

    def log(self, text: str) -> None:
        """Write a line (or several) to the log file alone."""
        if self._enabled:
            self._write_log(for_terminal(text))

    def report(self, event: Mapping[str, Any], seconds_left: float | None = None) -> None:
        """Say an event of `metrics.jsonl`: a train event in the bar where one is drawn, any other as a line."""
        said = describe(event, seconds_left)
        weights = event.get("weights", "model")
        name = event["event"] if weights == "model" else f"{event['event']} ({weights})"
        line = f"{name} step {event['step']} (epoch {event['epoch']:.2f}): {said}"
        if event["event"] == "train" and self._bars and self._bars[-1].drawn:
            self._bars[-1].show(describe(event, seconds_left, _BAR_FIELDS))
            self._write_log(line)
        else:
            self.line(line)

    def bar(self, label: str, total: int, done: int = 0) -> Bar:
        """A bar of `total` steps, `done` of them already done, for a `with` statement; nothing without a terminal.

        A bar made inside the block of another is drawn below it, and goes when its own block ends.
        """
        return Bar(self, label, total, done)

    def _write_log(self, text: str) -> None:
        if self._log is None:
            return
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            with open(
                self._log, "a", encoding="utf-8", errors="backslashreplace", opener=_open_without_waiting
            ) as file:
                file.writelines(f"{now} {line}\n" for line in text.splitlines() or [""])
        except OSError as error:
            self._log = None
            self.line(f"warning: the log cannot be written any more ({error}); the run goes on without it")


class Bar:
    """A progress bar; made by `Console.bar`."""

    def __init__(self, console: Console, label: str, total: int, done: int) -> None:
        self._console = console
        self._drawing = _Tqdm(
            desc=label,
            total=total,
            initial=done,
            file=console._terminal,
            disable=not console.on_terminal,
            leave=False,
            dynamic_ncols=console._terminal.knows_its_size(),
            bar_format=_BAR_WITH_TIMES,
        )

    @property
    def drawn(self) -> bool:
        """Whether it is on a terminal (and the user has not set tqdm's TQDM_DISABLE)."""
        return not self._drawing.disable

    def __enter__(self) -> Self:
        self._console._bars.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._console._bars.remove(self)
        self._drawing.close()

    def advance(self, count: int = 1) -> None:
        """Count steps as done. Redraws at most ten times a second."""
        self._drawing.update(count)

    def show(self, text: str) -> None:
        """Show a text at the end of the bar, with its next redrawing."""
        self._drawing.bar_format = _BAR_WITH_TEXT
        self._drawing.set_postfix_str(text, refresh=False)


def describe(event: Mapping[str, Any], seconds_left: float | None = None, fields: Sequence[str] = _LINE_FIELDS) -> str:
    """Numbers of an event for people: `loss 6.9078, lr 0.6, 812.3 images/s, eta 1:02:03`."""
    values = {**event, "eta": None if seconds_left is None else format_seconds(seconds_left)}
    return ", ".join(_FIELD_TEXTS[name].format(values[name]) for name in fields if values.get(name) is not None)


class _Tqdm(tqdm):
    # The monitor, a thread, only matters to bars that rarely advance, and loader workers are forked from here.
    monitor_interval = 0


# A lock of this process; tqdm's own reaches over processes and needs a semaphore of the system.
_Tqdm.set_lock(RLock())


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file. A pipe that nobody reads is an OSError, not a wait without end."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


class _LosableStream:
    """A text stream that falls silent when its other end is gone, and never raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self.encoding = stream.encoding or "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream is gone")
        return self._stream.fileno()

    def knows_its_size(self) -> bool:
        """Whether it is a terminal that says how large it is.

        Some in containers say 0 by 0. tqdm would take that for its size and draw nothing; left unasked, it draws short.
        """
        try:
            return min(os.get_terminal_size(self.fileno())) > 0
        except (OSError, ValueError):
            return False

    def write(self, text: str) -> None:
        if self._stream is not None:
            try:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError):  # ValueError: the stream is closed on this side.
                self._lose()

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._lose()

    def _lose(self) -> None:
        stream, self._stream = self._stream, None
        assert stream is not None
        try:
            # Python flushes standard output once more at exit, and would fail there; give it a place to write to.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # A stream without a file descriptor has nothing left to flush.
            pass
