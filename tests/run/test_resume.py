"""The checkpoint that a run resumes from, and the changes that prevent a resume."""

import copy
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.distributed import World
from seresnext.durations import Duration
from seresnext.errors import CheckpointError, DataError, UsageError
from seresnext.recipe.explain import all_keys
from seresnext.recipe.load import load_recipe, to_values
from seresnext.run.resume import (
    FREE_KEYS,
    MEASURE_KEYS,
    LoadedCheckpoint,
    changes_validation,
    check_compatible,
    find_checkpoint,
    restored_progress,
    rewind_folder,
)
from seresnext.training.plan import Progress

VAL = {"num_images": 4, "fingerprint": "def"}
DATASET = {"classes": ["cat", "dog"], "num_images": 10, "fingerprint": "abc", "val": VAL}


def digits():
    return load_recipe("digits").recipe


def facts(step, best=None):
    return CheckpointMetadata(step, to_values(digits()), "hash", best, [], copy.deepcopy(DATASET), {}, {"step": step})


def save(folder, step, best=None):
    path = store.commit(folder, step, {"model.weight": torch.ones(3) * step}, facts(step, best).to_metadata())
    store.update_link(folder, "last", path)
    return path


def damage(path):
    path.write_bytes(path.read_bytes()[:-1])


def find(folder, resume="auto"):
    said = []
    return find_checkpoint(folder, resume, World(), said.append), said


PROGRESS = {name: value for name, value in asdict(Progress(step=5)).items() if name != "history"}


@pytest.mark.parametrize(
    "change", [{"unlogged_loss": [1]}, {"evaluated": 6}, {"evaluated": -1}, {"epoch_seen": -1}, {"step": 1e3}, {"x": 1}]
)
def test_progress_that_no_run_writes(change):
    def restored(**changes):
        saved = replace(facts(5), progress={**PROGRESS, **changes})
        return restored_progress(LoadedCheckpoint(Path("old.safetensors"), {}, saved, digits()))

    assert restored(evaluated=5, unlogged_loss=-1e30) == Progress(step=5, evaluated=5, unlogged_loss=-1e30)
    with pytest.raises(CheckpointError, match=next(iter(change))):
        restored(**change)


def test_if_all_are_damaged_each_restart_is_refused(tmp_path):
    """torchrun restarts a failed start by itself."""
    damage(save(tmp_path, 9))
    for _ in range(3):
        with pytest.raises(CheckpointError, match=r"valid(?s:.*)step-00000009"):
            find(tmp_path)
    assert find(tmp_path, "never") == (None, [])
    save(tmp_path, 10)
    assert find(tmp_path)[0].metadata.step == 10


def test_the_newest_never_and_a_named_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find(tmp_path) == (None, [])  # An empty folder is a fresh start.
    older = save(tmp_path, 9)
    save(tmp_path, 10)
    newest, said = find(tmp_path)
    assert (newest.metadata.step, said) == (10, [])
    assert torch.equal(newest.tensors["model.weight"], torch.full((3,), 10.0))
    assert find(tmp_path, "never")[0] is None
    for name in (older, f"~/{older.name}"):
        assert find(tmp_path, str(name))[0].metadata.step == 9
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in (tmp_path / "other.safetensors", tmp_path / "link", "x" * 5000, "a\0b", tmp_path, ""):
        with pytest.raises(UsageError, match=r"--resume .*\. Give ") as refusal:
            find(tmp_path, str(name))
        assert len(str(refusal.value)) < 500
    with pytest.raises(UsageError, match=r"https://host//last\.safetensors"):
        find(tmp_path, "https://host//last.safetensors")


def test_a_damaged_one_is_renamed_when_the_run_resumes(tmp_path):
    """A damaged file is renamed under all names, and only after the start is accepted. A broken link stays."""
    save(tmp_path, 9)
    damage(save(tmp_path, 10))
    (tmp_path / "step-00000011.safetensors").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    saved, said = find(tmp_path)
    assert saved.metadata.step == 9
    assert sorted(tmp_path.iterdir()) == before
    assert len(said) == 2
    assert "step-00000010" in "".join(said)
    rewind_folder(saved, tmp_path, World(), said.append)
    assert "step-00000010.safetensors.corrupt" in said[2]
    assert "last.safetensors.corrupt" in said[2]
    assert store.verify(tmp_path / "last.safetensors")["step"] == "9"
    assert find(tmp_path)[1] == []


def test_a_restart_resumes_from_the_last_save_of_the_launch(tmp_path):
    """`--resume` counts for the first start of a launch, not for a restart."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    start = save(elsewhere, 7)

    def again(resume):
        found = find_checkpoint(folder, resume, World(), print, restarted=True)
        return found and found.metadata.step

    assert [again("never"), again(str(start))] == [None, 7]
    save(folder, 6)
    assert again(str(start)) == 7
    save(folder, 8)
    assert [again("never"), again(str(start)), again("auto")] == [8, 8, 8]


def test_ranks_that_see_different_files_refuse(tmp_path):
    class TwoRanks(World):
        def gather(self, value):
            return [value, "another digest" if isinstance(value, str) else value]

    save(tmp_path, 9)
    with pytest.raises(CheckpointError, match="not the same file on every rank"):
        find_checkpoint(tmp_path, "auto", TwoRanks(), print)


def test_a_resume_from_an_older_checkpoint_renames_later_checkpoints(tmp_path):
    best = {"step": 8, "top1": 50.0}
    save(tmp_path, 8, best)
    older = save(tmp_path, 9, best)
    save(tmp_path, 10)
    assert resume_from(older, tmp_path) == (best, [])
    assert list(store.steps(tmp_path)) == [8, 9]
    assert (tmp_path / "step-00000010.safetensors.superseded").exists()
    assert store.verify(tmp_path / "last.safetensors")["step"] == "9"
    assert store.verify(tmp_path / "best.safetensors")["step"] == "8"


def with_best(folder, best_step=8, step=9):
    """Save a best checkpoint and a newer checkpoint. Return the newer path, the best path and the best."""
    best = {"step": best_step, "top1": 50.0, "weights": "ema"}
    path = save(folder, best_step, best)
    store.update_link(folder, "best", path)
    return save(folder, step, best), path, best


def resume_from(file, folder, **options):
    """Resume from a file. Return the best and the printed lines."""
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    best = rewind_folder(find(folder, str(file))[0], folder, World(), said.append, **options)
    return best, said


def test_the_best_comes_along_into_another_folder(tmp_path):
    """This works also if only `best` still points to the file."""
    newest, path, best = with_best(tmp_path / "old")
    for number, file in enumerate([newest, newest, tmp_path / "old" / "best.safetensors"]):
        assert resume_from(file, tmp_path / f"new{number}") == (best, [])
        assert store.verify(tmp_path / f"new{number}" / "best.safetensors")["step"] == "8"
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("harm", ["gone", "damaged", "another run's", "pruned"])
def test_a_best_without_a_file_is_none(tmp_path, harm):
    """Pruned: the newest checkpoint is damaged, and a later best has replaced the best of the older checkpoint."""
    newest, path, best = with_best(tmp_path / "old")
    folder = tmp_path / ("old" if harm == "pruned" else "new")
    if harm == "damaged":
        damage(path)
    else:
        path.unlink()
        (tmp_path / "old" / "best.safetensors").unlink()
    if harm == "another run's":
        store.update_link(folder, "best", save(folder, 8, {**best, "top1": 60.0}))
    if harm == "pruned":
        store.update_link(folder, "best", save(folder, 10, {**best, "step": 10, "top1": 60.0}))
    found, (warning,) = resume_from(newest, folder)
    assert found is None
    assert "no valid checkpoint of the best validation is left: " in warning
    assert "top-1 50.00 % after step 8" in warning
    assert not (folder / "best.safetensors").exists()


def test_a_best_of_another_measure_stays_under_another_name(tmp_path):
    """This holds for a second change, too. A retired file does not count as best or newest checkpoint."""
    for number, step in ((1, 9), (2, 12)):
        newest, _, _ = with_best(tmp_path, best_step=step - 1, step=step)
        best, (warning,) = resume_from(newest, tmp_path, validation_changed=True)
        assert best is None
        assert f"best.superseded-{number}.safetensors" in warning
        assert not (tmp_path / "best.safetensors").exists()
    kept = [store.verify(tmp_path / f"best.superseded-{number}.safetensors")["step"] for number in (1, 2)]
    assert kept == ["8", "11"]
    assert find(tmp_path)[0].metadata.step == 12


def changed(key, value):
    section, name = key.split(".")
    return digits().changed(**{section: {name: value}})


def check(metadata, recipe, dataset, allowed):
    checkpoint = LoadedCheckpoint(Path("old.safetensors"), {}, metadata, metadata.read_recipe("old.safetensors"))
    return check_compatible(checkpoint, recipe, dataset, allowed)


def test_a_changed_key_is_refused_with_old_and_new():
    assert check(facts(3), digits(), DATASET, []) == []  # The control.
    values = changed("optimizer.lr", 0.5)
    with pytest.raises(UsageError, match=r"optimizer\.lr: [0-9.]+ -> 0\.5(?s:.*)--allow-changed optimizer\.lr$"):
        check(facts(3), values, DATASET, [])
    with pytest.raises(UsageError, match=r"--allow-changed length,optimizer\.lr$"):
        check(facts(3), values, DATASET, ["length"])
    for allowed in ("optimizer.lr", "optimizer"):
        assert len(check(facts(3), values, DATASET, [allowed])) == 1
    with pytest.raises(UsageError):
        check(facts(3), values, DATASET, ["optimizer.l"])


def test_keys_that_only_one_recipe_has(tmp_path):
    """A key newer than the checkpoint is no change at its default. A recipe with a key that nobody knows is refused."""
    old = facts(3)
    for section, key in (("augment", "policy"), ("augment", "repeats"), ("data", "progressive")):
        del old.recipe[section][key]
    assert check(old, digits(), DATASET, []) == []
    with pytest.raises(UsageError, match=r"augment\.repeats: 1 -> 2"):
        check(old, changed("augment.repeats", 2), DATASET, [])
    old.recipe["optimizer"]["gone"] = 1
    store.commit(tmp_path, 3, {"model.weight": torch.ones(3)}, old.to_metadata())
    with pytest.raises(CheckpointError, match=r"step-00000003(?s:.*)optimizer\.gone"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("data.workers", 99), ("checkpoint.mirror", "s3://bucket/other"), ("logging.sinks", ("mlflow",))]
)
def test_keys_that_no_number_depends_on_may_change(key, value):
    assert set(all_keys()) >= FREE_KEYS - {"logging"}
    assert len(check(facts(3), changed(key, value), DATASET, [])) == 1


def test_changed_images_and_classes_are_refused():
    """All changes come at once, and the next start accepts the permission."""
    other = {**DATASET, "fingerprint": "xyz", "num_images": 11}
    with pytest.raises(DataError, match=r"--allow-changed length,dataset$"):
        check(facts(3), digits(), other, ["length"])
    assert check(facts(3), digits(), other, ["dataset"]) == []
    other["classes"] = ["cat", "fox"]
    values = changed("optimizer.lr", 0.5).model_copy(update={"length": Duration(3, "ep")})
    with pytest.raises(DataError) as refusal:
        check(facts(3), values, other, ["data.mean"])
    message = str(refusal.value)
    for fact in ("optimizer.lr: ", "length: ", "gone: dog; new: fox", "10 training images then, 11 now"):
        assert fact in message
    permitted = re.search(r"--allow-changed (\S+)", message)[1].split(",")
    assert permitted[0] == "data.mean"
    assert len(check(facts(3), values, other, permitted)) == 2


def test_changed_validation_images_are_refused():
    values, old = digits(), facts(3)
    other = {**DATASET, "val": {"num_images": 4, "fingerprint": "xyz"}}
    with pytest.raises(DataError, match="validation") as refusal:
        check(old, values, other, [])
    assert "--allow-changed dataset" in str(refusal.value)
    assert check(old, values, other, ["dataset"]) == []
    assert [changes_validation(old, dataset, []) for dataset in (DATASET, other)] == [False, True]
    del old.dataset["val"]  # Version 0.1.0 wrote no `val`.
    assert check(old, values, other, []) == []
    assert not changes_validation(old, other, [])


@pytest.mark.parametrize(("key", "value"), [("evaluation.crop_pct", 0.5), ("evaluation.best_by", "loss")])
def test_a_change_of_the_measure_changes_the_validation(key, value):
    with pytest.raises(UsageError, match=key):
        check(facts(3), changed(key, value), DATASET, [])
    changes = check(facts(3), changed(key, value), DATASET, [key])
    assert changes_validation(facts(3), DATASET, changes)
    assert not changes_validation(facts(3), DATASET, ["data.workers: 1 -> 2"])
    assert set(all_keys()) >= MEASURE_KEYS
