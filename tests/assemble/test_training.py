"""What `status.json` tells of a run: of this start, from the moment the folder is held, whatever was there before."""

import json
import shutil

import pytest

from seresnext.assemble import train
from seresnext.checkpoint import store
from seresnext.distributed import World
from seresnext.errors import CheckpointError, OutOfMemory, UsageError
from seresnext.training.run_folder import RunFolder
from seresnext.training.status import read_status, write_status
from seresnext.training.step import TrainingStep
from seresnext.training.stopping import StopRequest

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
    """A run of two steps that says that it was stopped after the first."""
    return shutil.copytree(stopped, tmp_path / "run")


def without_memory(*_):
    raise MemoryError


@pytest.mark.parametrize("why", ["damaged", "changed", "memory"])
def test_a_run_that_cannot_go_on_is_failed(preempted, train_synthetic, monkeypatch, why):
    """Else a job that goes by it would queue itself again without end."""
    settings, error, words = SETTINGS, CheckpointError, "none of the 1 checkpoints"
    if why == "damaged":
        (preempted / "checkpoints" / "step-00000001.safetensors").write_bytes(b"")
    if why == "changed":
        settings, error, words = [*SETTINGS, "optimizer.lr=0.5"], UsageError, "the recipe differs"
    if why == "memory":
        monkeypatch.setattr(TrainingStep, "warm_up", without_memory)
        error, words = OutOfMemory, "out of memory"
    with pytest.raises(error, match=words):
        train_synthetic(preempted, settings)
    status = read_status(preempted)
    assert (status["state"], status["step"]) == ("failed", 1)
    assert status["reason"].startswith(words)  # No rank is to blame.
    assert f" error: {words}" in (preempted / "log.txt").read_text()


def test_a_start_that_is_refused_the_folder_leaves_the_status(preempted, load_synthetic, monkeypatch):
    """It is that of the training that holds it."""

    def refuse(self):
        raise UsageError("in use")

    monkeypatch.setattr(RunFolder, "open", refuse)
    before = read_status(preempted)
    with pytest.raises(UsageError, match="in use"):
        train(load_synthetic(SETTINGS), World(), StopRequest(), output=preempted, resume="auto", allow_changed=())
    assert read_status(preempted) == before


def test_what_goes_wrong_after_the_end_does_not_undo_it(preempted, train_synthetic, monkeypatch):
    write = RunFolder.write_status

    def write_and_fail(self, state, step, reason=None):
        write(self, state, step, reason)
        if state == "finished":
            raise OSError("after the end")

    monkeypatch.setattr(RunFolder, "write_status", write_and_fail)
    with pytest.raises(OSError, match="after the end"):
        train_synthetic(preempted, SETTINGS)
    assert read_status(preempted)["state"] == "finished"


def test_the_step_is_that_of_the_last_log(preempted, train_synthetic, monkeypatch):
    commit, seen = store.commit, []

    def looking(folder, step, *rest):
        status = read_status(preempted)
        seen.append((step, status["state"], status["step"]))
        return commit(folder, step, *rest)

    monkeypatch.setattr(store, "commit", looking)
    train_synthetic(preempted, SETTINGS)
    assert seen == [(2, "running", 2)]


def test_a_best_without_a_file_is_said_and_chosen_anew(preempted, train_synthetic, capsys):
    """In a new folder, from a checkpoint whose best was pruned."""
    file = preempted / "checkpoints" / "step-00000001.safetensors"
    tensors, metadata = store.read(file)
    del metadata["digest"]
    progress = json.loads(metadata["progress"])
    progress["best"]["step"] = 0
    store.commit(
        file.parent, 1, tensors, metadata | {"best": json.dumps(progress["best"]), "progress": json.dumps(progress)}
    )
    capsys.readouterr()
    train_synthetic(preempted, SETTINGS)
    assert "no valid checkpoint is left of the best validation so far" in capsys.readouterr().out
    assert store.verify(preempted / "checkpoints" / "best.safetensors")["step"] == "2"
