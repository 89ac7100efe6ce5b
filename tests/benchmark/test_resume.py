"""The benchmark of a resume over as many images as ImageNet has: timed, and a replay would be noticed."""

from collections import Counter
from typing import Any

import pytest
from benchmark import resume

from seresnext.data import order
from seresnext.data.order import Order
from seresnext.data.synthetic import SyntheticImages
from seresnext.run import assemble

IMAGES = 1_281_167
EPOCH = IMAGES // 1024
PLACES = [0, 1, 30 * EPOCH + EPOCH // 2, 31 * EPOCH - 1, 31 * EPOCH, 100 * EPOCH - 1]
# Micro-batches, of 8 images, that may be made before the first step. The step needs one, and a queue a few more.
FEW = 8


@pytest.mark.full
def test_figures_are_measured_and_written(bench):
    figures, printed = bench("resume", "--model", "seresnext26", "--workers", "1")
    assert figures["images"] == IMAGES
    assert [start["step"] for start in figures["starts"].values()] == PLACES
    assert figures["seconds"] == max(start["seconds"] for start in figures["starts"].values()) > 0
    assert figures["is_met"] == (figures["seconds"] < 2)
    assert ("the target is met" if figures["is_met"] else "the target is NOT met") in printed
    for start in figures["starts"].values():
        assert sum(start["parts"].values()) == pytest.approx(start["seconds"])


def replaying(of_run: Order, replicas: range, start: int, *rest: Any) -> Any:
    """Read all steps of the epoch before the first, as some samplers do."""
    for step in range(start - start % of_run.steps_per_epoch, start):
        of_run.micro_batch(step, replicas[0])
    return KEYS(of_run, replicas, start, *rest)


KEYS = assemble.train_keys


# The events of TensorBoard are left open by a run that is cut off.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("keys", [KEYS, replaying], ids=["ours", "replaying"])
@pytest.mark.full
def test_nothing_is_replayed(measure, narrow_model, monkeypatch, keys):
    """The control is a run that replays."""
    counts: list[Counter[str]] = []

    def counting(name, function):
        def call(*arguments: Any, **options: Any) -> Any:
            counts[-1][name] += 1
            return function(*arguments, **options)

        return call

    def starting(*arguments: Any) -> Any:
        counts.append(Counter())
        return start(*arguments)

    start = resume._start
    monkeypatch.setattr(resume, "_start", starting)
    monkeypatch.setattr(assemble, "train_keys", keys)
    for owner, name in ((Order, "micro_batch"), (order, "permutation_at"), (SyntheticImages, "make")):
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    measure(resume, "--model", "seresnext26", "--workers", 0)
    assert len(counts) == len(PLACES)
    for count, step in zip(counts, PLACES, strict=True):
        assert 1 <= count["make"] <= FEW
        assert 1 <= count["permutation_at"] <= 2  # The permutations of this epoch and the next.
        assert (1 <= count["micro_batch"] <= FEW) is (keys is KEYS or step % EPOCH <= FEW)
