"""A small benchmark of saves: the figures are measured, and a synchronous saver misses the target."""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from benchmark import checkpoint

from seresnext.checkpoint import file_format

SMALL = ["--model", "seresnext26", "--image-size", "32"]
SLOW = 3.0  # seconds of a write, for a disk slower than any machine of these tests


@pytest.mark.full
def test_figures_are_measured_and_written(bench, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    figures, printed = bench("checkpoint", *SMALL, "--saves", "2", "--folder", folder)
    # Weights, average and momentum in float32, and the counters of BatchNorm.
    assert figures["bytes"] == pytest.approx(3 * 4 * 16_790_280, rel=0.01)
    assert 0 < figures["stall_seconds"] <= figures["longest_stall_seconds"]
    assert figures["ratio"] == pytest.approx(figures["stall_seconds"] / figures["write_seconds"])
    assert figures["step_seconds"] > 0
    assert figures["slowdown_beside_write"] is None or figures["slowdown_beside_write"] > 0
    assert "stall_seconds" in printed
    assert figures["is_met"] == (figures["ratio"] <= 0.2)
    assert ("the target is met" if figures["is_met"] else "the target is NOT met") in printed
    assert list(folder.iterdir()) == []


class Synchronous(ThreadPoolExecutor):
    """A saver's thread that is none: training waits for each write."""

    def submit(self, function, /, *args, **options):
        future = super().submit(function, *args, **options)
        wait([future])
        return future


@pytest.mark.full
@pytest.mark.parametrize("synchronous", [False, True])
def test_a_write_is_part_of_the_stall_only_where_training_waits_for_it(
    measure, narrow_model, monkeypatch, tmp_path, capsys, synchronous
):
    """The control is a synchronous saver, with the opposite verdict."""
    write = file_format.write_synced

    def slow(*arguments: Any) -> None:
        time.sleep(SLOW)
        write(*arguments)

    monkeypatch.setattr(file_format, "write_synced", slow)
    if synchronous:
        monkeypatch.setattr("seresnext.training.saving.ThreadPoolExecutor", Synchronous)
    figures = measure(checkpoint, *SMALL, "--saves", 1, "--threads", 1, "--folder", tmp_path)
    assert figures["is_met"] is not synchronous
    assert (figures["stall_seconds"] >= SLOW) is synchronous
    assert ("the target is NOT met" in capsys.readouterr().out) is synchronous
