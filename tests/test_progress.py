"""Progress reports of long work."""

import os
import pty
import subprocess
import sys

import pytest

from seresnext import progress as module
from seresnext.progress import progress, warn


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]):
    with progress("index of train", 10) as advance:
        for _ in range(10):
            advance(1)
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_a_line_every_30_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with progress("index of train", 100) as advance:
        for second in range(100):
            clock[0] = float(second)
            advance(1)
    assert capsys.readouterr().err.splitlines() == [f"index of train: {n} %" for n in (4, 35, 66, 97)]


def test_control_characters_of_a_warning_are_escaped(capsys: pytest.CaptureFixture[str]):
    warn("odd\x1b[2J is damaged")
    assert capsys.readouterr() == ("", "warning: odd\\x1b[2J is damaged\n")


def test_a_terminal_of_size_0_gets_a_bar():
    """A new pseudo-terminal reports this size until a size is set."""
    seen, terminal = pty.openpty()
    code = "import time; from seresnext import progress; progress._QUIET_SECONDS = 0.0\n"
    code += "with progress.progress('index of train', 4) as advance: time.sleep(0.2); advance(4)"
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, timeout=60)
    os.close(terminal)
    shown = os.read(seen, 10_000).decode()
    os.close(seen)
    assert "index of train" in shown
    assert "4.00/4.00" in shown
