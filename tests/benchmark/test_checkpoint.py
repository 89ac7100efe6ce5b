"""The benchmark of saves, made small: its figures are measured, and are those of a real checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"


def test_figures_are_measured_and_written(run_command, tmp_path: Path):
    folder, file = tmp_path / "disk", tmp_path / "figures.json"
    folder.mkdir()
    words = ["--model", "seresnext26", "--image-size", "32", "--saves", "2", "--folder", folder, "--json", file]
    result = run_command([sys.executable, SCRIPT, "checkpoint", *words])
    assert result.returncode == 0, result.output
    figures = json.loads(file.read_text())
    # Weights, their average and momentum, in float32, and what BatchNorm counts.
    assert figures["bytes"] == pytest.approx(3 * 4 * 16_790_280, rel=0.01)
    assert 0 < figures["stall_seconds"] <= figures["longest_stall_seconds"]
    assert figures["ratio"] == pytest.approx(figures["stall_seconds"] / figures["write_seconds"])
    assert figures["step_seconds"] > 0
    assert figures["slowdown_beside_write"] is None or figures["slowdown_beside_write"] > 0
    assert "stall_seconds" in result.stdout
    assert list(folder.iterdir()) == []
