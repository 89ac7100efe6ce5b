"""A small benchmark of saves: the figures are measured, and a synchronous saver misses the target."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from seresnext.checkpoint import file_format
from seresnext.models import SENet

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "bench.py"
SLOW = 3.0  # seconds of a write, for a disk slower than any machine of these tests


@pytest.mark.full
def test_figures_are_measured_and_written(run_command, tmp_path: Path):
    folder, file = tmp_path / "disk", tmp_path / "figures.json"
    folder.mkdir()
    words = ["--model", "seresnext26", "--image-size", "32", "--saves", "2", "--folder", folder, "--json", file]
    result = run_command([sys.executable, SCRIPT, "checkpoint", *words])
    assert result.returncode == 0, result.output
    figures = json.loads(file.read_text())
    # Weights, average and momentum in float32, and the counters of BatchNorm.
    assert figures["bytes"] == pytest.approx(3 * 4 * 16_790_280, rel=0.01)
    assert 0 < figures["stall_seconds"] <= figures["longest_stall_seconds"]
    assert figures["ratio"] == pytest.approx(figures["stall_seconds"] / figures["write_seconds"])
    assert figures["step_seconds"] > 0
    assert figures["slowdown_beside_write"] is None or figures["slowdown_beside_write"] > 0
    assert "stall_seconds" in result.stdout
    assert figures["is_met"] == (figures["ratio"] <= 0.2)
    assert ("the target is met" if figures["is_met"] else "the target is NOT met") in result.stdout
    assert list(folder.iterdir()) == []


class Synchronous(ThreadPoolExecutor):
    """A saver's thread that is none: training waits for each write."""

    def submit(self, function, /, *args, **options):
        future = super().submit(function, *args, **options)
        wait([future])
        return future


@pytest.mark.full
@pytest.mark.parametrize("synchronous", [False, True])
def test_a_write_is_part_of_the_stall_only_where_training_waits_for_it(monkeypatch, tmp_path, capsys, synchronous):
    """The control is a synchronous saver, with the opposite verdict."""
    write = file_format.write_synced

    def slow(*arguments: Any) -> None:
        time.sleep(SLOW)
        write(*arguments)

    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("benchmark.checkpoint")
    monkeypatch.setattr(
        "seresnext.models.registry.create_model", lambda name, **options: SENet((1, 1, 1, 1), cardinality=1, **options)
    )
    monkeypatch.setattr(file_format, "write_synced", slow)
    if synchronous:
        monkeypatch.setattr("seresnext.training.saving.ThreadPoolExecutor", Synchronous)
    parser = argparse.ArgumentParser()
    script.add_arguments(parser)
    words = [
        "--model",
        "seresnext26",
        "--image-size",
        "32",
        "--saves",
        "1",
        "--threads",
        "1",
        "--folder",
        str(tmp_path),
    ]
    figures = script.run(parser.parse_args(words))
    assert figures["is_met"] is not synchronous
    assert (figures["stall_seconds"] >= SLOW) is synchronous
    assert ("the target is NOT met" in capsys.readouterr().out) is synchronous
