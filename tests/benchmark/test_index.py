"""The benchmark of large indices with small sizes: all figures are measured, and a bad reader exceeds the limits."""

import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from benchmark import index

from seresnext.data.formats import open_reader
from seresnext.data.readers import Reader

READERS = ("archives", "folder", "shards", "imagenet21k")
SAMPLES = ("--samples", 500)
SMALL = ("--images", 5000, "--large", 5000, *SAMPLES)


@pytest.mark.full
def test_figures_are_measured_and_written(bench):
    figures, printed = bench("index", "--images", "20000", "--large", "60000", *map(str, SAMPLES))
    for part in READERS:
        assert figures[part]["open_ms"] > 0
        assert f"{part}.worker_growth_mb" in printed
    assert figures["order"]["cold_seconds"] > 0
    assert figures["build"]["images_per_second"] > 0
    # 15 bytes for an image of an archive, 16 for one of shards; the header holds the names of the classes.
    assert figures["archives"]["index_mb"] == pytest.approx(0.30, rel=0.1)
    assert figures["shards"]["index_mb"] == pytest.approx(0.32, rel=0.1)
    assert not [miss for miss in figures["missed"] if "_mb:" in miss]  # The times depend on the machine.
    assert ("all figures are below the limits" in printed) == (figures["missed"] == [])


def open_leaking(*words: Any) -> Reader:
    """Open a reader that keeps data of each image, as a cache without a limit does."""
    reader, kept = open_reader(*words), []

    def leaking(function: Callable[[int], Any]) -> Callable[[int], Any]:
        def call(number: int) -> Any:
            # New memory for certain: the heap that a fork of a large process inherits has room for much.
            kept.append(mmap.mmap(-1, 50_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            kept[-1].write(os.urandom(50_000))
            return function(number)

        return call

    reader.read, reader.name = leaking(reader.read), leaking(reader.name)
    return reader


@pytest.mark.full
def test_a_reader_that_leaks_is_seen_to_grow_and_missed(measure, monkeypatch, capsys):
    """The negative control of the workers' memory: the same measurements as above, in which nothing is missed."""
    monkeypatch.setattr(index, "open_reader", open_leaking)
    figures = measure(index, *SMALL)
    said = capsys.readouterr().out
    for part in (*READERS, "loader"):
        assert figures[part]["worker_growth_mb"] > 12  # Of the 25 that leak; the loader's worker is ahead at the start.
        assert f"{part}.worker_growth_mb: " in said.partition("above the limit: ")[2]
    missed = {miss.partition(":")[0] for miss in figures["missed"]}
    assert {f"{part}.worker_growth_mb" for part in (*READERS, "loader")} <= missed
    assert not {miss for miss in missed if "index_mb" in miss}


class Strings:
    """A naive reader: each access to the list of names copies memory into the worker."""

    def __init__(self, count: int) -> None:
        self.names = [f"n01440764_{number}.JPEG" for number in range(count)]
        self.labels = np.zeros(count, np.int64)

    def name(self, number: int) -> str:
        return self.names[number]


def test_a_list_of_strings_would_be_seen_to_grow():
    """Reference counts copy pages into the worker: private memory, but no growth of RssAnon."""
    reader = Strings(300_000)
    order = np.random.default_rng(0).permutation(300_000)
    figures = index.in_a_process(lambda: index.growth_of_worker(reader, reader.name, order, 20_000))
    assert figures["worker_private_mb"] > index.TARGETS["archives"]["worker_private_mb"]
