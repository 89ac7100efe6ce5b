"""A small benchmark of exports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"


@pytest.mark.full
def test_each_kind_has_size_latency_and_speed(run_command, tmp_path: Path):
    file = tmp_path / "figures.json"
    words = ["--model", "seresnext26", "--kinds", "weights", "folded", "--batch-size", "2", "--rounds", "1"]
    result = run_command([sys.executable, SCRIPT, "export", *words, "--json", file])
    assert result.returncode == 0, result.output
    kinds = json.loads(file.read_text())["kinds"]
    assert list(kinds) == ["pytorch", "weights", "folded"]
    for row in kinds.values():
        assert row["bytes"] == pytest.approx(4 * 16_790_280, rel=0.01)
        assert row["latency_ms"] > 0
        assert row["images_per_second"] > 0
    assert kinds["pytorch"]["ratio"] == 1
    assert "images/s" in result.stdout
