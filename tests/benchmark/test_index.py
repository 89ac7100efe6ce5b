"""The benchmark of large indices with small sizes: all figures are measured, and a bad reader exceeds the limits."""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from seresnext.data.formats import open_reader
from seresnext.data.readers import Reader

SCRIPTS = Path(__file__).parents[2] / "scripts"
READERS = ("archives", "folder", "shards", "imagenet21k")
SAMPLES = 500


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("benchmark.index")


def measure(script: ModuleType) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    script.add_arguments(parser)
    return script.run(parser.parse_args(["--images", "5000", "--large", "5000", "--samples", str(SAMPLES)]))


@pytest.mark.full
def test_figures_are_measured_and_written(run_command, tmp_path: Path):
    words = ["--images", "20000", "--large", "60000", "--samples", str(SAMPLES), "--json", tmp_path / "figures"]
    result = run_command([sys.executable, SCRIPTS / "bench.py", "index", *words])
    assert result.returncode == 0, result.output
    figures = json.loads((tmp_path / "figures").read_text())
    for part in READERS:
        assert figures[part]["open_ms"] > 0
        assert f"{part}.worker_growth_mb" in result.stdout
    assert figures["order"]["cold_seconds"] > 0
    assert figures["build"]["images_per_second"] > 0
    # 15 bytes for an image of an archive, 16 for one of shards; the header holds the names of the classes.
    assert figures["archives"]["index_mb"] == pytest.approx(0.30, rel=0.1)
    assert figures["shards"]["index_mb"] == pytest.approx(0.32, rel=0.1)
    assert figures["missed"] == []
    assert "all figures are below the limits" in result.stdout


class Leaking:
    """A reader that keeps data of each image, as a cache without a limit does."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._kept: list[mmap.mmap] = []

    def __len__(self) -> int:
        return len(self._reader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def read(self, index: int) -> bytes:
        self._keep()
        return self._reader.read(index)

    def name(self, index: int) -> str:
        self._keep()
        return self._reader.name(index)

    def _keep(self) -> None:
        # New memory for certain: the heap that a fork of a large process inherits has room for much.
        memory = mmap.mmap(-1, 50_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.write(os.urandom(50_000))
        self._kept.append(memory)


@pytest.mark.full
def test_a_reader_that_leaks_is_seen_to_grow_and_missed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The negative control of the workers' memory: the same measurements as above, in which nothing is missed."""
    monkeypatch.setattr(script, "open_reader", lambda *words: Leaking(open_reader(*words)))
    figures = measure(script)
    said = capsys.readouterr().out
    for part in (*READERS, "loader"):
        assert figures[part]["worker_growth_mb"] > 12  # Of the 25 that leak; the loader's worker is ahead at the start.
        assert f"{part}.worker_growth_mb: " in said.partition("above the limit: ")[2]
    missed = {miss.partition(":")[0] for miss in figures["missed"]}
    assert {f"{part}.worker_growth_mb" for part in (*READERS, "loader")} <= missed
    assert not {miss for miss in missed if "growth" not in miss and "private" not in miss}


class Strings:
    """A naive reader: each access to the list of names copies memory into the worker."""

    def __init__(self, count: int) -> None:
        self.names = [f"n01440764_{number}.JPEG" for number in range(count)]
        self.labels = np.zeros(count, np.int64)

    def name(self, index: int) -> str:
        return self.names[index]


def test_a_list_of_strings_would_be_seen_to_grow(script: ModuleType):
    """Reference counts copy pages into the worker: private memory, but no growth of RssAnon."""
    reader = Strings(300_000)
    order = np.random.default_rng(0).permutation(300_000)
    figures = script.in_a_process(lambda: script._growth_of_worker(reader, reader.name, order, 20_000))
    assert figures["worker_private_mb"] > script.TARGETS["archives"]["worker_private_mb"]


def test_a_miss_is_reported(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(script.TARGETS["archives"], "index_mb", 0.001)
    monkeypatch.setattr(script, "_loader_figures", lambda *_: {"worker_growth_mb": 0.0})
    assert len(measure(script)["missed"]) == 1
    assert "above the limit: archives.index_mb" in capsys.readouterr().out
