"""The console of rank 0: progress bars on a terminal, plain lines elsewhere.

All output except the bars also goes to `log.txt`, with the time. A lost terminal (a dropped connection) or a full disk
does not end the run.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from seresnext.errors import for_terminal, listed, printable
from seresnext.progress import ProgressBar

# The fields of a line, in order. A line omits the other fields of an event.
_FIELD_TEXTS = {
    "loss": "loss {:.4f}",
    "top1": "top-1 {:.2f} %",
    "top5": "top-5 {:.2f} %",
    "balanced_accuracy": "balanced accuracy {:.2f} %",
    "macro_f1": "macro F1 {:.2f} %",
    "lr": "lr {:.4g}",
    "images_per_second": "{:.1f} images/s",
    "data_wait": "data wait {:.3f} s",
    "grad_norm": "gradient norm {:.3f}",
    "eta": "eta {}",
    "epoch": "epoch {:.2f}",
}
_LINE_FIELDS = tuple(name for name in _FIELD_TEXTS if name != "epoch")
_BAR_FIELDS = ("loss", "images_per_second", "eta", "lr", "epoch")  # A narrow terminal cuts off the last fields.
_MOST_CLASSES, _LONGEST_NAME = 20, 40
_BAR_WITH_TIMES = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_BAR_WITH_TEXT = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"


class Console:
    """Printer to `stream` (standard output) and to the log file. Other ranks have a disabled console."""

    def __init__(self, enabled: bool, log: Path | None = None, stream: TextIO | None = None) -> None:
        self._enabled = enabled
        self._log = log
        self._stream = stream or sys.stdout
        self._draws_bars = enabled and self._stream.isatty()

    def print(self, text: str) -> None:
        """Print a line (or several) above the bars."""
        if self._enabled:
            text = for_terminal(text)
            self._write_log(text)
            try:
                ProgressBar.write(text, file=self._stream)
                self._stream.flush()
            except (OSError, ValueError):  # ValueError: this process has closed the stream.
                # From now on /dev/null accepts the output, also that of Python, which flushes standard output at exit.
                with suppress(OSError, ValueError), open(os.devnull, "wb") as null:  # noqa: PTH123
                    os.dup2(null.fileno(), self._stream.fileno())

    def log(self, text: str) -> None:
        """Write a line (or several) only to the log file."""
        if self._enabled:
            self._write_log(for_terminal(text))

    def print_event(self, event: Mapping[str, Any], seconds_left: float | None, bar: ProgressBar) -> None:
        """Print an event of `metrics.jsonl`: a train event in the bar if a bar is drawn, other events as a line."""
        weights = event.get("weights", "model")
        name = event["event"] if weights == "model" else f"{event['event']} ({weights})"
        total = f" of {event['total_steps']}" if event.get("total_steps") else ""
        place = f"{name} step {event['step']}{total} (epoch {event['epoch']:.2f})"
        if name == "epoch":
            place = f"epoch {event['epoch']:.0f}, step {event['step']}"
        line = f"{place}: {describe(event, seconds_left)}"
        if event["event"] == "train" and not bar.disable:
            bar.bar_format, bar.ncols = _BAR_WITH_TEXT, shutil.get_terminal_size().columns
            bar.set_postfix_str(describe(event, seconds_left, _BAR_FIELDS), refresh=False)
            self._write_log(line)
        else:
            self.print(line)

    def bar(self, label: str, total: int, done: int = 0) -> ProgressBar:
        """Return a bar of `total` steps, of which `done` are complete, for a `with` statement.

        A bar inside the block of another bar is drawn below the outer bar. Nothing is drawn without a terminal.
        """
        place = {"file": self._stream, "disable": not self._draws_bars, "bar_format": _BAR_WITH_TIMES}
        return ProgressBar(desc=label, total=total, initial=done, **place)

    def _write_log(self, text: str) -> None:
        if self._log is None:
            return
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            with open(self._log, "a", encoding="utf-8", opener=_open_nonblocking) as file:
                file.writelines(f"{now} {line}\n" for line in text.splitlines() or [""])
        except OSError as error:
            path, self._log = self._log, None
            self.print(f"warning: {path} cannot be written ({error.strerror}); the run continues without the log")


def describe(event: Mapping[str, Any], seconds_left: float | None = None, fields: Sequence[str] = _LINE_FIELDS) -> str:
    """Return the numbers of an event as a text: `loss 6.9078, lr 0.6, 812.3 images/s, eta 1:02:03`.

    Balanced accuracy is left out next to the same top-1 accuracy: all classes have equally many images.
    """
    values = {**event, "eta": None if seconds_left is None else timedelta(seconds=round(seconds_left))}
    top1, balanced = event.get("top1"), event.get("balanced_accuracy")
    if top1 is not None and balanced is not None and fields[0] != "balanced_accuracy" and abs(top1 - balanced) < 0.005:
        values["balanced_accuracy"] = None
    return ", ".join(_FIELD_TEXTS[name].format(values[name]) for name in fields if values.get(name) is not None)


def table_of_classes(classes: Sequence[Mapping[str, Any]]) -> str:
    """Return the results of the classes (`per_class` of an event) as a table, the lowest recall first."""
    measured = sorted((row for row in classes if row["support"]), key=lambda row: (row["recall"], row["class"]))
    shown = [(printable(row["class"], _LONGEST_NAME), row) for row in measured[:_MOST_CLASSES]]
    width = max([len("class"), *(len(name) for name, _ in shown)])
    lines = [f"{'class':<{width}}   images    recall  precision"]
    lines += [f"{name:<{width}} {r['support']:8,} {r['recall']:7.1f} % {r['precision']:8.1f} %" for name, r in shown]
    if more := len(measured) - len(shown):
        lines.append(f"{more:,} classes with a higher recall are in metrics.jsonl")
    if missing := [printable(row["class"], _LONGEST_NAME) for row in classes if not row["support"]]:
        names = ", ".join(listed(missing, 5))
        lines.append(f"no validation images, and no part in the means over classes: {names}")
    return "\n  ".join(["results of the classes in the last validation:", *lines])


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file. A pipe without a reader raises OSError; a plain open would wait forever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
