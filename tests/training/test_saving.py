"""Saving: the right tensors under the right names, the best where it belongs, and failures that all ranks hear of."""

import shutil

import pytest
import torch
from torch import nn

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import Facts
from seresnext.distributed import World
from seresnext.training.saving import Saver

FIRST = World()


@pytest.fixture
def model():
    return nn.Linear(3, 2)


@pytest.fixture
def said():
    return []


@pytest.fixture
def make(model, said, tmp_path):
    def make(world=FIRST, folder=tmp_path / "checkpoints", keep=2, goes_on=False):
        return Saver(
            world=world,
            folder=folder,
            keep=keep,
            goes_on=goes_on,
            parts=lambda: {"model": model.state_dict()},
            facts=lambda step, progress: Facts(step, {"a": 1}, "hash", progress["best"], [], {}, {}, progress),
            say=said.append,
        )

    return make


def progress(step, best=None):
    return {"step": step, "best": {"step": best, "top1": 50.0} if best is not None else None}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def step_name(step):
    return f"step-{step:08}.safetensors"


def test_a_save_is_the_run_as_it_is(make, model, tmp_path):
    saver = make()
    for step in (1, 2):
        with torch.no_grad():
            model.weight.fill_(step)
        saver.save(step, progress(step))
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        tensors, metadata = store.read(folder / step_name(step))
        assert tensors.keys() == {"model.weight", "model.bias"}
        assert torch.equal(tensors["model.weight"], torch.full((2, 3), float(step)))
        assert torch.equal(tensors["model.bias"], model.bias)
        facts = Facts.from_metadata(metadata, "file")
        assert (facts.step, facts.progress, facts.recipe_hash) == (step, progress(step), "hash")


def test_last_and_best_point_where_they_should(make, tmp_path):
    """The model is best after step 2 and is not validated, or not better, after the others."""
    saver, folder = make(keep=1), tmp_path / "checkpoints"
    saver.save(1, progress(1))
    assert names(folder) == ["last.safetensors", step_name(1)]
    saver.save(2, progress(2, best=2))
    saver.save(3, progress(3, best=2))
    assert names(folder) == ["best.safetensors", "last.safetensors", step_name(3)]
    assert store.verify(folder / "best.safetensors")["step"] == "2"
    assert store.verify(folder / "last.safetensors")["step"] == "3"
    saver.save(4, progress(4, best=4))
    assert store.verify(folder / "best.safetensors")["step"] == "4"


def test_as_many_stay_as_the_recipe_keeps(make, tmp_path):
    saver = make(keep=3)
    for step in range(1, 7):
        saver.save(step, progress(step))
    assert list(store.steps(tmp_path / "checkpoints")) == [4, 5, 6]


def test_the_same_step_twice_is_the_later_one(make, model, tmp_path):
    saver = make()
    saver.save(1, progress(1))
    with torch.no_grad():
        model.weight.fill_(7)
    saver.save(1, progress(1, best=1))
    tensors, _ = store.read(tmp_path / "checkpoints" / "best.safetensors")
    assert torch.equal(tensors["model.weight"], torch.full((2, 3), 7.0))


def test_without_a_folder_nothing_is_saved(make, tmp_path):
    make(folder=None).save(1, progress(1))
    assert not (tmp_path / "checkpoints").exists()


# ------------------------------------------------------------------------------------------------ failures


@pytest.fixture
def full_disk(monkeypatch):
    def fail(*args):
        raise store.SaveError("step 1 could not be saved: the disk is full")

    monkeypatch.setattr(store, "commit", fail)


def test_a_failure_ends_the_run(make, said, full_disk):
    with pytest.raises(store.SaveError, match="the disk is full"):
        make().save(1, progress(1))
    assert said == []


def test_or_is_said_and_training_goes_on(make, said, full_disk, monkeypatch, tmp_path):
    saver = make(goes_on=True)
    saver.save(1, progress(1))
    assert said == [
        "warning: step 1 could not be saved: the disk is full; training goes on without this checkpoint "
        "(checkpoint.on_failure: continue)"
    ]
    monkeypatch.undo()
    saver.save(2, progress(2))
    assert list(store.steps(tmp_path / "checkpoints")) == [2]


def test_a_real_failure_leaves_the_checkpoints_before(make, said, tmp_path, monkeypatch):
    saver, folder = make(goes_on=True), tmp_path / "checkpoints"
    saver.save(1, progress(1))
    shutil.move(folder, tmp_path / "safe")
    folder.write_text("no folder any more")
    saver.save(2, progress(2))
    assert len(said) == 1
    assert "could not be saved" in said[0]
    assert store.verify(tmp_path / "safe" / step_name(1))["step"] == "1"


def test_a_defect_is_no_failed_save(make, said, monkeypatch):
    monkeypatch.setattr(store, "commit", lambda *args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        make(goes_on=True).save(1, progress(1))


class Together(World):
    """Rank 1 of two, where rank 0 tells how its save went."""

    verdict = None

    def gather(self, value):
        return [self.verdict, value]


@pytest.mark.parametrize("goes_on", [False, True])
def test_other_ranks_write_nothing_and_hear_of_a_failure(make, said, tmp_path, goes_on):
    saver = make(world=Together(rank=1, size=2), goes_on=goes_on)
    saver.save(1, progress(1))
    assert not (tmp_path / "checkpoints").exists()
    failed = Together(rank=1, size=2)
    object.__setattr__(failed, "verdict", (store.SaveError, "the disk is full"))
    saver = make(world=failed, goes_on=goes_on)
    if goes_on:
        saver.save(1, progress(1))
    else:
        with pytest.raises(store.SaveError, match="the disk is full") as caught:
            saver.save(1, progress(1))
        assert caught.value.is_shared
