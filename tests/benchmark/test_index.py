"""The simulation of large indices, made small: that its figures are measured, and that a bad reader would miss them."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark" / "index.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_index", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_measured_and_written(run_command, tmp_path: Path):
    words = ["--images", "20000", "--large", "60000", "--samples", "500", "--json", tmp_path / "figures"]
    result = run_command([sys.executable, SCRIPT, *words])
    assert result.returncode == 0, result.output
    figures = json.loads((tmp_path / "figures").read_text())
    for part in ("archives", "folder", "imagenet21k"):
        assert figures[part]["index_mb"] > 0
        assert figures[part]["open_ms"] > 0
        assert figures[part]["worker_growth_mb"] >= 0
    assert "worker_growth_mb" in figures["loader"]
    assert figures["order"]["cold_seconds"] > 0
    assert figures["build"]["images_per_second"] > 0
    # 15 bytes for an image of an archive; the header holds the names of the classes.
    assert figures["archives"]["index_mb"] == pytest.approx(0.30, rel=0.1)
    assert figures["missed"] == []
    assert "all that is asked for is met" in result.stdout


class Strings:
    """A reader as one would write it first: a list of names, which every look at copies into the worker."""

    def __init__(self, count: int) -> None:
        self.names = [f"n01440764_{number}.JPEG" for number in range(count)]
        self.labels = np.zeros(count, np.int64)

    def name(self, index: int) -> str:
        return self.names[index]


def test_a_list_of_strings_would_be_seen_to_grow(script: ModuleType):
    """The negative control of the workers' memory: the same measurement of a reader that is not shared."""
    reader = Strings(300_000)
    order = np.random.default_rng(0).permutation(300_000)
    figures = script.in_a_process(lambda: script._growth_of_worker(reader, reader.name, order, 20_000))
    assert figures["worker_private_mb"] > script.TARGETS["archives"]["worker_private_mb"]


def test_a_miss_is_told(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(script.TARGETS["archives"], "index_mb", 0.001)
    monkeypatch.setattr(script, "_loader_figures", lambda *_: {"worker_growth_mb": 0.0})
    parser = argparse.ArgumentParser()
    script.add_arguments(parser)
    figures = script.run(parser.parse_args(["--images", "5000", "--large", "5000", "--samples", "200"]))
    assert len(figures["missed"]) == 1
    assert "missed: archives.index_mb" in capsys.readouterr().out
