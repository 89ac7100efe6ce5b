"""scripts/offers.py: the processes of a machine, and the figure. tests/runs/test_mirror.py moves a run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import offers
import pytest

SLEEPERS = "sleep 60 & (sleep 60 & exec setsid sleep 60) & exec sleep 60"


def test_all_processes_of_a_machine_are_found_also_in_other_sessions():
    with subprocess.Popen(["sh", "-c", SLEEPERS]) as process:
        try:
            while len(offers._descendants(process.pid)) < 4:
                assert process.poll() is None
        finally:
            for pid in offers._descendants(process.pid):
                os.kill(pid, 9)


def test_equal_numbers_give_equal_figures(tmp_path: Path):
    pytest.importorskip("matplotlib")
    whole = {step: 1 / step for step in range(1, 9)}
    for name in ("one.svg", "two.svg"):
        moved = {step: loss + 1e-9 for step, loss in whole.items()}
        offers.draw(whole, moved, [(4, 0), (1, 4)], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "machine 2: 1 process " in (tmp_path / "one.svg").read_text()
