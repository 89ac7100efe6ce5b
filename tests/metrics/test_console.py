"""The console on a pipe, on a real pseudo-terminal, on a closed terminal, and on other ranks."""

import io
import os
import re
import sys
import termios
import time
from contextlib import suppress
from datetime import datetime

import pytest

from seresnext.metrics.console import Console, describe, table_of_classes

TRAIN = {"event": "train", "step": 50, "epoch": 0.5, "loss": 6.9078, "lr": 0.6, "images_per_second": 812.34}
VALIDATE = {"event": "validate", "step": 100, "epoch": 1.0, "loss": 2.5, "top1": 50.0, "top5": 75.125, "num_images": 8}
LINES = [  # of `run_epoch`
    "start",
    "train step 50 (epoch 0.50): loss 6.9078, lr 0.6, 812.3 images/s, eta 1:02:03",
    "warning: above the bar",
    r"inside\x1b[2J\rb\x9b\u202e\udc80 日本",
    "validate step 100 (epoch 1.00): loss 2.5000, top-1 50.00 %, top-5 75.12 %",
    "end",
]


class Terminal:
    """A pseudo-terminal. The output of a test fits into the buffer of the system."""

    def __init__(self, rows=24, columns=100):
        self._reader, writer = os.openpty()
        termios.tcsetwinsize(writer, (rows, columns))
        self.stream = os.fdopen(writer, "w", encoding="utf-8")

    def close(self):
        self.stream.close()
        output = b""
        with suppress(OSError):  # The end of the output.
            while chunk := os.read(self._reader, 4096):
                output += chunk
        os.close(self._reader)
        return output.decode()


def screen(text):
    """Return the final lines of a screen that knows carriage return, line feed and cursor up, as tqdm uses."""
    rows, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", text):
        if token == "\x1b[A":
            row -= 1
        elif token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        else:
            rows[row] = rows[row][:column].ljust(column) + token + rows[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in rows if line.strip()]


def run_epoch(console):
    console.print("start")
    with console.bar("train", 4) as bar:
        for _ in range(4):
            bar.update()
        console.print_event(TRAIN, seconds_left=3723, bar=bar)
        bar.update(0)
        console.print("warning: above the bar")
        with console.bar("validate", 2) as inner:
            inner.update()
            console.print("inside\x1b[2J\rb\x9b\u202e\udc80 日本")
        console.print_event(VALIDATE, None, bar)
    console.print("end")


def test_plain_lines_without_a_terminal(tmp_path):
    stream = io.StringIO()
    run_epoch(Console(True, tmp_path / "log.txt", stream))
    assert stream.getvalue().splitlines() == LINES
    logged = [line.split(" ", 1) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [text for _, text in logged] == LINES
    assert all(datetime.fromisoformat(stamp).tzinfo for stamp, _ in logged)


@pytest.mark.parametrize("kind", ["pipe", "missing folder"])
def test_a_log_that_cannot_be_written_is_one_warning(tmp_path, kind):
    """A plain open of a pipe without a reader waits forever."""
    log = tmp_path / "log.txt" if kind == "pipe" else tmp_path / "missing" / "log.txt"
    if kind == "pipe":
        os.mkfifo(log)
    stream = io.StringIO()
    console = Console(True, log, stream)
    console.print("start")
    console.print("end")
    warning, start, end = stream.getvalue().splitlines()
    assert str(log) in warning
    assert [start, end] == ["start", "end"]


def test_bars_on_a_terminal(tmp_path):
    terminal = Terminal()
    run_epoch(Console(True, tmp_path / "log.txt", terminal.stream))
    seen = terminal.close()
    assert "train:  " in seen
    assert "validate:  " in seen
    # The train event is only in the bar. At the end the screen has all lines and no bar.
    assert screen(seen) == [line for line in LINES if not line.startswith("train")]
    assert "train step 50" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (50, 200), (0, 0), (0, 80), (24, 0)])
def test_bar_shows_loss_speed_and_time(monkeypatch, rows, columns):
    terminal = Terminal(rows, columns)
    monkeypatch.setattr(sys, "__stdout__", terminal.stream)
    console = Console(True, None, terminal.stream)
    with console.bar("train", 10000, done=4000) as bar:
        console.print_event(TRAIN, seconds_left=3723, bar=bar)
        time.sleep(0.2)
        bar.update(2000)
    seen = terminal.close()
    assert "train:  40%|" in seen
    assert " 4000/10000 [" in seen
    assert " 6000/10000, loss 6.9078, 812.3 images/s, eta 1:02:03, lr 0.6" in seen


def test_other_ranks_are_silent(tmp_path, capfd):
    terminal = Terminal()
    console = Console(False, tmp_path / "log.txt", terminal.stream)
    run_epoch(console)
    assert terminal.close() == ""
    run_epoch(Console(False))
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.parametrize("end", ["closed", "hung up"])
def test_terminal_that_hangs_up(tmp_path, end):
    reader, writer = os.openpty()
    stream = os.fdopen(writer, "w")
    console = Console(True, tmp_path / "log.txt", stream)
    with console.bar("train", 1000) as bar:
        bar.update()
        os.close(reader) if end == "hung up" else stream.close()
        for _ in range(1000):
            bar.update()
        console.print("still here")
    run_epoch(console)
    assert [line.split(" ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["still here", *LINES]
    stream.close()


def test_describe_omits_missing_fields():
    assert describe({"loss": float("nan"), "lr": None, "weights": "ema"}) == "loss nan"
    assert describe({"data_wait": 0.0123, "grad_norm": 2.0}) == "data wait 0.012 s, gradient norm 2.000"
    assert describe({"loss": None, "top1": None, "lr": 0.5}) == "lr 0.5"  # All steps of the interval were skipped.


def test_balanced_accuracy_is_shown_where_classes_are_unequal():
    unequal = {"top1": 62.5, "balanced_accuracy": 50.0}
    assert describe(unequal) == "top-1 62.50 %, balanced accuracy 50.00 %"
    equal = {"top1": 62.5, "balanced_accuracy": 62.500001}
    assert describe(equal) == "top-1 62.50 %"
    assert describe(equal, fields=("balanced_accuracy", "top1")) == "balanced accuracy 62.50 %, top-1 62.50 %"


def test_results_of_classes_are_a_table_with_the_lowest_recall_first():
    rows = [{"class": "cat", "support": 1200, "recall": 90.0, "precision": 75.25}]
    rows += [{"class": "a\x1b[2Jdog", "support": 3, "recall": 33.333, "precision": 100.0}]
    rows += [{"class": name, "support": 0, "recall": 0.0, "precision": 0.0} for name in ("newt", "owl")]
    assert table_of_classes(rows).splitlines() == [
        "results of the classes in the last validation:",
        "  class         images    recall  precision",
        "  a\\x1b[2Jdog        3    33.3 %    100.0 %",
        "  cat            1,200    90.0 %     75.2 %",
        "  no validation images, and no part in the means over classes: newt, owl",
    ]
    many = [{**rows[0], "class": f"{number:02}", "recall": float(number)} for number in range(25)]
    table = table_of_classes(many).splitlines()
    assert [line.split()[0] for line in table[2:-1]] == [f"{number:02}" for number in range(20)]
    assert table[-1] == "  5 classes with a higher recall are in metrics.jsonl"
