"""The benchmark of starting again, over as many images as ImageNet has: timed, and one that replays would be seen."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from seresnext.data.order import Order
from seresnext.data.synthetic import SyntheticImages
from seresnext.models import SENet
from seresnext.run import assemble

SCRIPTS = Path(__file__).parents[2] / "scripts"
IMAGES = 1_281_167
EPOCH = IMAGES // 1024
PLACES = [0, 1, 30 * EPOCH + EPOCH // 2, 31 * EPOCH - 1, 31 * EPOCH, 100 * EPOCH - 1]
# Micro-batches, of 8 images, that may be made before the first step. The step needs one, and a queue a few more.
FEW = 8


@pytest.mark.full
def test_figures_are_measured_and_written(run_command, tmp_path: Path):
    file = tmp_path / "figures.json"
    words = ["--model", "seresnext26", "--workers", "1", "--json", file]
    result = run_command([sys.executable, SCRIPTS / "bench.py", "resume", *words])
    assert result.returncode == 0, result.output
    figures = json.loads(file.read_text())
    assert figures["images"] == IMAGES
    assert [start["step"] for start in figures["starts"].values()] == PLACES
    assert figures["seconds"] == max(start["seconds"] for start in figures["starts"].values()) > 0
    assert figures["is_met"] == (figures["seconds"] < 2)
    assert ("the target is met" if figures["is_met"] else "the target is NOT met") in result.stdout
    for start in figures["starts"].values():
        assert sum(start["parts"].values()) == pytest.approx(start["seconds"])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(
        "seresnext.models.registry.create_model", lambda name, **options: SENet((1, 1, 1, 1), cardinality=1, **options)
    )
    return importlib.import_module("benchmark.resume")


def count(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """How often, in each start, the order is asked, an epoch is permuted and a batch of images is made."""
    counts: list[Counter[str]] = []
    start = script._start

    def counted(owner: type, name: str) -> None:
        function = getattr(owner, name)

        def counting(*arguments: Any) -> Any:
            counts[-1][name] += 1
            return function(*arguments)

        monkeypatch.setattr(owner, name, counting)

    def starting(*arguments: Any) -> Any:
        counts.append(Counter())
        return start(*arguments)

    for owner, name in ((Order, "micro_batch"), (Order, "_permute"), (SyntheticImages, "make")):
        counted(owner, name)
    monkeypatch.setattr(script, "_start", starting)
    parser = argparse.ArgumentParser()
    script.add_arguments(parser)
    script.run(parser.parse_args(["--model", "seresnext26", "--workers", "0"]))
    assert len(counts) == len(PLACES)
    return counts


# The events of TensorBoard are left open by a run that is cut off.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_replayed(script: ModuleType, monkeypatch: pytest.MonkeyPatch):
    for counts in count(script, monkeypatch):
        assert 1 <= counts["micro_batch"] <= FEW
        assert 1 <= counts["make"] <= FEW
        assert 1 <= counts["_permute"] <= 2  # The permutations of this epoch and the next.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_replay_would_be_seen(script: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """The control: a run that reads all steps of the epoch before the first, as some samplers do."""
    keys = assemble.train_keys

    def replaying(order: Order, replicas: range, start: int, *rest: Any) -> Any:
        for step in range(start - start % order.steps_per_epoch, start):
            order.micro_batch(step, replicas[0])
        return keys(order, replicas, start, *rest)

    monkeypatch.setattr(assemble, "train_keys", replaying)
    asked = [counts["micro_batch"] for counts in count(script, monkeypatch)]
    assert [number > FEW for number in asked] == [step % EPOCH > FEW for step in PLACES]
