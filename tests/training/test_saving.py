"""Saving: tensors and names, the links `last` and `best`, and failures on all ranks."""

import concurrent.futures
import threading
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.distributed import World
from seresnext.training.saving import Saver

FIRST = World()
DATASET = {"classes": ["a"], "num_images": 1, "fingerprint": ""}


@pytest.fixture
def model():
    return nn.Linear(3, 2)


@pytest.fixture
def said():
    return []


@pytest.fixture
def make(model, said, tmp_path):
    """`make(...)`: a saver in its context."""
    entered = []

    def make(world=FIRST, folder=tmp_path / "checkpoints", keep=2, keep_every=None, continue_on_failure=False):
        saver = Saver(
            world,
            folder,
            tensors=lambda: {"model": model.state_dict()},
            metadata=lambda step, progress: CheckpointMetadata(
                step, {"a": 1}, "hash", progress["best"], [], DATASET, {}, progress
            ),
            warn=said.append,
            keep=keep,
            keep_every=keep_every,
            continue_on_failure=continue_on_failure,
        )
        entered.append(saver.__enter__())
        return saver

    yield make
    for saver in entered:
        saver.__exit__(None, None, None)


def progress(step, best=None):
    return {"step": step, "best": {"step": best, "top1": 50.0} if best is not None else None}


def save(saver, step, best=None):
    """Save as the trainer does. Return the result of `wait` for the previous save."""
    written = saver.wait()
    saver.save(step, progress(step, best))
    return written


def fill(model, value):
    with torch.no_grad():
        model.weight.fill_(value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def step_name(step):
    return f"step-{step:08}.safetensors"


def test_last_and_best_link_to_the_right_files(make, tmp_path):
    """The model is best after step 2 and is not validated, or not better, after the others."""
    saver, folder = make(keep=1), tmp_path / "checkpoints"
    save(saver, 1)
    saver.finish()
    assert names(folder) == ["last.safetensors", step_name(1)]
    save(saver, 2, best=2)
    save(saver, 3, best=2)
    saver.finish()
    assert names(folder) == ["best.safetensors", "last.safetensors", step_name(3)]
    assert store.verify(folder / "best.safetensors")["step"] == "2"
    assert store.verify(folder / "last.safetensors")["step"] == "3"
    save(saver, 4, best=4)
    saver.finish()
    assert store.verify(folder / "best.safetensors")["step"] == "4"


# ------------------------------------------------------------------------------------------------ in the background


@contextmanager
def slow_disk(monkeypatch):
    """Writes that end when the event is set. Also a list of the steps whose writes have started."""
    may_end, begun, real = threading.Event(), [], store.commit

    def commit(folder, step, *content):
        begun.append(step)
        assert may_end.wait(60)
        return real(folder, step, *content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", commit)
        try:
            yield may_end, begun
        finally:
            may_end.set()


def test_one_write_at_a_time_and_the_memory_is_not_overwritten(make, model, tmp_path, monkeypatch):
    """A save waits for the previous write before the tensors are copied."""
    saver = make()
    fill(model, 1)
    with slow_disk(monkeypatch) as (may_end, begun):
        save(saver, 1)
        fill(model, 2)
        second = threading.Thread(target=save, args=(saver, 2))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert begun == [1]
        may_end.set()
        second.join(60)
        saver.finish()
        assert begun == [1, 2]
    for step in (1, 2):
        tensors, metadata = store.read(tmp_path / "checkpoints" / step_name(step))
        assert tensors.keys() == {"model.weight", "model.bias"}
        assert tensors["model.weight"].unique() == step
        facts = CheckpointMetadata.from_metadata(metadata, "file")
        assert (facts.step, facts.progress, facts.recipe_hash) == (step, progress(step), "hash")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ZeroDivisionError])
def test_leaving_waits_for_the_write(make, tmp_path, monkeypatch, error):
    saver = make()
    with slow_disk(monkeypatch) as (may_end, _):
        save(saver, 1)
        threading.Timer(0.2, may_end.set).start()
        saver.__exit__(error, error and error(), None)
    store.verify(tmp_path / "checkpoints" / step_name(1))


def test_pointers_come_after_the_checkpoint_is_durable_and_removal_last(make, monkeypatch):
    calls = []
    for name in ("commit", "update_link", "prune"):
        real = getattr(store, name)
        spy = lambda *words, real=real: calls.append((real.__name__, *words)) or real(*words)  # noqa: E731
        monkeypatch.setattr(store, name, spy)
    saver = make()
    save(saver, 1, best=1)
    saver.finish()
    assert [call[2] if call[0] == "update_link" else call[0] for call in calls] == ["commit", "last", "best", "prune"]


def test_no_thread_is_left_after_a_write(make):
    """The loader forks between saves."""
    before = set(threading.enumerate())
    saver = make()
    save(saver, 1)
    threads = set(threading.enumerate()) - before
    saver.finish()
    for thread in threads:
        thread.join(10)
    assert set(threading.enumerate()) <= before


# ------------------------------------------------------------------------------------------------ failures


FULL = store.SaveError("step 1 could not be saved: the disk is full")


@pytest.fixture
def fail(monkeypatch):
    """`fail(error)`: let writes fail."""
    return lambda error: monkeypatch.setattr(store, "commit", Mock(side_effect=error))


def test_a_failure_is_seen_without_waiting(make, fail, monkeypatch):
    """The control is a write that succeeds."""
    with slow_disk(monkeypatch) as (may_end, _):
        saver = make()
        saver.save(1, progress(1))
        assert saver.has_failed is False
        may_end.set()
        wait_for_end(saver)
        assert saver.has_failed is False
        saver.finish()
    fail(ZeroDivisionError())
    saver.save(2, progress(2))
    wait_for_end(saver)
    assert saver.has_failed is True
    with pytest.raises(ZeroDivisionError):
        saver.finish()


def wait_for_end(saver):
    concurrent.futures.wait([saver._write_result], timeout=60)


@pytest.mark.parametrize("continue_on_failure", [False, True])
@pytest.mark.parametrize("heard_by", ["wait", "finish"])
def test_a_failure_ends_the_run_or_is_a_warning(make, said, fail, monkeypatch, tmp_path, heard_by, continue_on_failure):
    """A run cannot continue after the last step: `finish` always raises, once."""
    fail(FULL)
    saver = make(continue_on_failure=continue_on_failure)
    save(saver, 1)
    if heard_by == "wait" and continue_on_failure:
        assert saver.wait() is False
        assert said == [
            "warning: step 1 could not be saved: the disk is full. Training continues without this checkpoint "
            "(checkpoint.on_failure: continue)"
        ]
    else:
        with pytest.raises(store.SaveError, match="the disk is full"):
            getattr(saver, heard_by)()
        assert said == []
    assert saver.has_failed is False
    monkeypatch.undo()
    assert save(saver, 2) is True
    saver.finish()
    assert list(store.steps(tmp_path / "checkpoints")) == [2]


def test_a_failure_at_exit_is_a_warning_and_hides_no_exception(make, said, fail):
    fail(FULL)
    saver = make()
    save(saver, 1)
    with pytest.raises(KeyError), saver:
        raise KeyError("another reason")
    assert said == ["warning: step 1 could not be saved: the disk is full"]


def test_a_failed_removal_is_a_warning_and_no_failed_save(make, said, tmp_path, monkeypatch):
    saver, folder = make(keep=1), tmp_path / "checkpoints"
    save(saver, 1)
    saver.wait()
    (folder / step_name(1)).unlink()
    (folder / step_name(1)).mkdir()  # No file system unlinks a folder.
    save(saver, 2, best=2)
    assert saver.wait() is True
    assert len(said) == 1
    assert "an old checkpoint could not be removed" in said[0]
    assert step_name(1) in said[0]
    assert store.verify(folder / "best.safetensors")["step"] == "2"
    saver.finish()
    assert len(said) == 1


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ZeroDivisionError()])
def test_other_exceptions_are_raised(make, fail, error):
    fail(error)
    saver = make(continue_on_failure=True)
    save(saver, 1)
    with pytest.raises(type(error)) as caught:
        saver.wait()
    assert caught.value is error


@pytest.mark.parametrize("continue_on_failure", [False, True])
def test_other_ranks_write_nothing_and_get_the_failure(make, tmp_path, monkeypatch, continue_on_failure):
    verdicts = [None]  # of rank 0
    monkeypatch.setattr(World, "gather", lambda self, value: [verdicts[0], value])
    saver = make(world=World(rank=1, size=2), continue_on_failure=continue_on_failure)
    assert save(saver, 1)
    assert saver.wait()
    assert saver.has_failed is False
    assert not (tmp_path / "checkpoints").exists()
    verdicts[0] = store.SaveError, "the disk is full"
    if continue_on_failure:
        assert saver.wait() is False
    else:
        with pytest.raises(store.SaveError, match="the disk is full") as caught:
            saver.wait()
        assert caught.value.is_shared
    with pytest.raises(store.SaveError):
        saver.finish()
