"""The benchmark of starting again, made small: each start is timed, and one that replays would be seen."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

from seresnext.data.order import Order

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_figures_are_measured_and_written(run_command, tmp_path: Path):
    file = tmp_path / "figures.json"
    words = ["--model", "seresnext26", "--images", "10000", "--workers", "1", "--json", file]
    result = run_command([sys.executable, SCRIPTS / "bench.py", "resume", *words])
    assert result.returncode == 0, result.output
    figures = json.loads(file.read_text())
    assert [start["step"] for start in figures["starts"].values()] == [0, 1, 274, 278, 279, 899]
    assert figures["seconds"] == max(start["seconds"] for start in figures["starts"].values()) > 0
    for start in figures["starts"].values():
        assert sum(start["parts"].values()) == pytest.approx(start["seconds"])


# The events of TensorBoard are left open by a run that is cut off.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_replay_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    """The control: an order that goes through the epoch up to its place, as samplers do that know no other way."""
    spec = importlib.util.spec_from_file_location("benchmark_resume", SCRIPTS / "benchmark" / "resume.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    real = Order.micro_batch

    def replayed(order: Order, step: int, replica: int):
        time.sleep(0.05 * (step % order.steps_per_epoch))
        return real(order, step, replica)

    monkeypatch.setattr(Order, "micro_batch", replayed)
    parser = argparse.ArgumentParser()
    script.add_arguments(parser)
    figures = script.run(parser.parse_args(["--model", "seresnext26", "--images", "10000", "--workers", "0"]))
    starts = figures["starts"]
    late, early = starts["last step of an epoch"]["parts"]["batch"], starts["start of an epoch"]["parts"]["batch"]
    assert late > early + 8 * 0.05 / 2
