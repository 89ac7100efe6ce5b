"""Space, the speed of writes, and time and price of a run."""

import os
from unittest.mock import Mock

import pytest

from seresnext.check.devices import Speeds
from seresnext.check.disk import check_disk, judge_space, judge_time, judge_writes, measure_writes, step_seconds
from seresnext.checkpoint import store
from seresnext.recipe.load import load_recipe
from seresnext.run.estimate import Spread
from seresnext.training.plan import build_plan

STEP = Spread(2.0, 1.5, 3.0)


def run(*settings, steps_per_epoch=10):
    recipe = load_recipe("seresnext50", ["length=20ep", *settings]).recipe
    return recipe, build_plan(recipe, steps_per_epoch)


@pytest.mark.parametrize(
    "settings",
    [(), ["checkpoint.keep=1"], ["checkpoint.keep_every=5ep"], ["length=2ep"],
     ["evaluation.every=3ep", "checkpoint.every=9ep"]],
)  # fmt: skip
def test_the_number_of_checkpoints_is_that_of_a_run(settings, tmp_path):
    """The oracle saves empty files as a run does, and counts the most files. `best` is the first file."""
    recipe, plan = run(*settings)
    most = 0
    for step in range(1, plan.total + 1):
        if plan.is_due(plan.save_every, step) or plan.is_due(plan.evaluate_every, step):
            (tmp_path / f"step-{step:08d}.safetensors").touch()
            most = max(most, len(store.steps(tmp_path)) + 1)
            store.prune(tmp_path, recipe.checkpoint.keep, plan.keep_every)
    every = min(plan.save_every, plan.evaluate_every, plan.total)
    needed = judge_space(recipe, plan, every, 1, 10**9, tmp_path).values["needed_bytes"]
    assert most <= needed <= most + 2


@pytest.mark.parametrize(
    ("free", "verdict"), [(1001, "ok"), (1000, "ok"), (999, "warning"), (500, "warning"), (499, "failure")]
)
def test_free_space(free, verdict, tmp_path):
    recipe, plan = run()
    finding = judge_space(recipe, plan, plan.save_every, 100, free, tmp_path)  # Five checkpoints of 100 bytes.
    assert (finding.verdict, finding.values["needed_bytes"]) == (verdict, 500)
    assert ("--output" in finding.fix) == (verdict != "ok")


def test_writes_are_synced_and_leave_nothing(small, tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(number) or fsync(number))
    rate = measure_writes(tmp_path)
    assert len(synced) == 5
    assert 0 < rate.low <= rate.median <= rate.high
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_yet_and_one_that_cannot_be_written(small, tmp_path, monkeypatch):
    recipe, plan = run()
    speeds = Speeds(STEP, 1000)
    found = check_disk(recipe, plan, speeds, tmp_path / "runs" / "new")
    assert [(finding.name, finding.verdict) for finding in found] == [("space", "ok"), ("writing", "ok")]
    assert str(tmp_path) in found[0].measured
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (finding,) = check_disk(recipe, plan, speeds, tmp_path / "file" / "run")
    assert (finding.verdict, "Not a directory" in finding.measured) == ("failure", True)
    monkeypatch.setattr("tempfile.TemporaryFile", Mock(side_effect=OSError(30, "Read-only file system")))
    (finding,) = check_disk(recipe, plan, speeds, tmp_path)
    assert (finding.verdict, "Read-only" in finding.measured) == ("failure", True)


@pytest.mark.parametrize(("interval", "verdict"), [(10.1, "ok"), (9.9, "warning")])
def test_a_checkpoint_that_takes_longer_than_the_interval(interval, verdict):
    finding = judge_writes(Spread(1e8, 1e8, 1e8), 10**9, interval)
    assert finding.verdict == verdict
    assert "100 MB/s with fsync: 10 s a checkpoint" in finding.measured


def test_the_slower_of_step_and_loader_gives_the_pace():
    _, plan = run()
    assert step_seconds(plan, Speeds(STEP, 0)) == STEP
    assert step_seconds(plan, Speeds(STEP, 0, loader=Spread(4096.0, 2048.0, 8192.0))) == STEP
    slow = step_seconds(plan, Speeds(STEP, 0, loader=Spread(256.0, 128.0, 1024.0)))
    assert slow == (4.0, 1.5, 8.0)


def test_time_and_price_of_a_run():
    """200 steps of 2 s; 20 validations of 1,536 images, at three times the images/s of a step: 1 s."""
    _, plan = run()
    finding = judge_time(plan, Speeds(STEP, 0), num_val=1536, price=36.0)
    assert finding.values["median"] == pytest.approx(200 * 2 + 20)
    assert finding.values["high"] == pytest.approx(200 * 3 + 20)
    assert finding.values["price"] == pytest.approx(4.2)
    assert finding.measured.startswith("0:07:00 (0:05:20 to 0:10:20): 200 steps of 2 s")
    assert finding.measured.endswith("price 4.20 (3.20 to 6.20), at 36 an hour")
    assert "price" not in judge_time(plan, Speeds(STEP, 0), 1536, None).measured
    bound = Speeds(STEP, 0, loader=Spread(512.0, 512.0, 512.0))
    assert judge_time(plan, bound, 1536, None).values["median"] == pytest.approx(200 * 2 + 20 * 3)
