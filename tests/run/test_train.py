"""`status.json` of a run: the status of this start, from the lock of the folder to the end."""

import math
import shutil
import time
from dataclasses import replace

import pytest

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.distributed import World
from seresnext.errors import CheckpointError, OutOfMemory, UsageError
from seresnext.evaluation import evaluate
from seresnext.metrics import status as status_module
from seresnext.metrics.status import read_status, update_status, write_status
from seresnext.process.signals import StopRequest
from seresnext.run.folder import RunFolder
from seresnext.training import trainer as trainer_module
from seresnext.training.step import TrainingStep

SETTINGS = ["length=2st", "evaluation.every=1st", "checkpoint.every=1st", "logging.every=1st"]


@pytest.fixture(scope="module")
def stopped(train_synthetic, tmp_path_factory):
    run = train_synthetic(tmp_path_factory.mktemp("stopped") / "run", SETTINGS)
    (run / "checkpoints" / "step-00000002.safetensors").unlink()
    for name in store.POINTERS:
        (run / "checkpoints" / f"{name}.safetensors").unlink()
    write_status(run, World(), "preempted", 1, "stopped by SIGTERM")
    return run


@pytest.fixture
def preempted(stopped, tmp_path):
    """Return a run of two steps with the status `preempted` after the first step."""
    return shutil.copytree(stopped, tmp_path / "run")


def without_memory(*_, **__):
    raise MemoryError


@pytest.mark.parametrize(
    ("why", "error", "words"),
    [
        ("damaged", CheckpointError, "none of the 1 checkpoints"),
        ("changed", UsageError, "optimizer.lr: "),
        ("memory", OutOfMemory, "out of memory"),
    ],
)
def test_a_run_that_cannot_go_on_is_failed(preempted, train_synthetic, monkeypatch, why, error, words):
    """Otherwise a job script that reads the status would queue the run forever."""
    if why == "damaged":
        (preempted / "checkpoints" / "step-00000001.safetensors").write_bytes(b"")
    if why == "memory":
        monkeypatch.setattr(TrainingStep, "warm_up", without_memory)
    with pytest.raises(error, match=words) as caught:
        train_synthetic(preempted, [*SETTINGS, *["optimizer.lr=0.5"] * (why == "changed")])
    message, status = str(caught.value), read_status(preempted)
    assert (status["state"], status["step"]) == ("failed", 1)
    assert status["reason"] == message  # The message names no rank.
    assert f" error: {message.splitlines()[0]}" in (preempted / "log.txt").read_text()


def test_a_run_is_finished_when_its_last_checkpoint_is_on_the_disk(train_synthetic, monkeypatch, tmp_path):
    """Every write ends before the next write begins. Step 2 is saved before the validation, and then as the best."""
    commit, write_status, happened = store.commit, RunFolder.write_status, []

    def slow(folder, step, *content):
        happened.append(("begin", step))
        time.sleep(0.2)
        path = commit(folder, step, *content)
        happened.append(("end", step))
        return path

    def noted(self, state, step, reason=None):
        happened.append((state, step))
        write_status(self, state, step, reason)

    monkeypatch.setattr(store, "commit", slow)
    monkeypatch.setattr(RunFolder, "write_status", noted)
    train_synthetic(tmp_path / "run", ["length=2st", "evaluation.every=2st", "checkpoint.every=1st"])
    writes = [(kind, step) for step in (1, 2, 2) for kind in ("begin", "end")]
    assert happened == [("running", 0), *writes, ("finished", 2)]


def test_the_status_has_the_last_log_the_last_save_the_total_and_the_best(preempted, train_synthetic, monkeypatch):
    """Step 2 counts as saved when the write is complete."""
    point, commit, seen = store.update_link, store.commit, []

    def look(name):
        status = read_status(preempted)
        seen.append((name, *(status[key] for key in ("state", "step", "saved_step", "total_steps"))))

    def update_link(folder, name, path):
        point(folder, name, path)
        if path.name == "step-00000002.safetensors":
            look(name)

    monkeypatch.setattr(store, "update_link", update_link)
    monkeypatch.setattr(store, "commit", lambda *words: (look("commit"), commit(*words))[1])
    train_synthetic(preempted, SETTINGS)
    assert seen[:2] == [("commit", "running", 2, 1, 2), ("last", "running", 2, 1, 2)]
    status = read_status(preempted)
    assert [status[key] for key in ("state", "step", "saved_step", "total_steps")] == ["finished", 2, 2, 2]
    facts = CheckpointMetadata.from_metadata(store.verify(preempted / "checkpoints" / "best.safetensors"), "best")
    assert status["best"] == facts.best
    assert status["started"] <= status["updated"]


def test_a_fresh_start_clears_the_progress_of_another_run(preempted, train_synthetic, monkeypatch):
    """The folder has the status of another run, and the start has --resume never."""
    write_status(preempted, World(), "running", 1, None)
    update_status(preempted, saved_step=50, total_steps=90, best={"step": 50, "top1": 1.0})
    monkeypatch.setattr(TrainingStep, "__call__", without_memory)
    with pytest.raises(OutOfMemory):
        train_synthetic(preempted, SETTINGS, resume="never")
    status = read_status(preempted)
    assert (status["state"], status["saved_step"], status["total_steps"], status["best"]) == ("failed", None, 2, None)
    assert (preempted / "earlier-1" / "checkpoints" / "step-00000001.safetensors").exists()


def test_ranks_stay_until_the_end_is_written(preempted, train_synthetic):
    """If rank 0 is killed before the final status is written, another rank must still be there to write `failed`."""
    states = []

    class Watched(World):
        def broadcast(self, value):
            states.append(read_status(preempted)["state"])
            return value

    train_synthetic(preempted, SETTINGS, world=Watched())
    assert states[-2:] == ["running", "finished"]


def validated_with(monkeypatch, losses):
    """Let each validation in turn have one of these losses."""
    calls = []

    def evaluate_with(*arguments, **options):
        calls.append(None)
        result = evaluate(*arguments, **options)
        loss = losses[(len(calls) - 1) // 2]  # Model and average are validated in turn.
        return result and replace(result, metrics={**result.metrics, "loss": loss})

    monkeypatch.setattr(trainer_module, "evaluate", evaluate_with)


@pytest.mark.full
def test_a_validation_loss_that_is_not_finite_stands_in_the_end(train_synthetic, monkeypatch, tmp_path, capsys):
    """The reason survives a stop and a resume, and a second start of the finished run."""
    run, settings = tmp_path / "run", ["length=4st", "evaluation.every=1st", "logging.every=1st"]
    stop = StopRequest()
    validated_with(monkeypatch, [1.0, math.nan, math.nan, math.nan])
    update = status_module.update_status

    def update_and_stop(folder, step):
        update(folder, step=step)
        if step == 3:
            stop.signal = "SIGTERM"

    monkeypatch.setattr(status_module, "update_status", update_and_stop)
    train_synthetic(run, settings, stop)
    assert read_status(run)["state"] == "preempted"
    validated_with(monkeypatch, [math.nan] * 3)
    for _ in range(2):
        train_synthetic(run, settings)
        status = read_status(run)
        assert status["state"] == "finished"
        assert status["reason"] == "the validation loss is not finite after step 4"
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert any("step 2" in line and "nan" in line and "ema" in line for line in warnings)


def test_a_validation_that_is_finite_leaves_no_reason(train_synthetic, tmp_path, capsys):
    """Control. The largest of 3 classes has 6 of the 16 images."""
    run = train_synthetic(tmp_path / "run", SETTINGS)
    assert read_status(run)["reason"] is None
    (finished,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("finished: best top-1")]
    assert "37.5 %" in finished
