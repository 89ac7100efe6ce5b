"""Whole runs with a mirror in a folder: the files that another machine gets, and training without the store."""

import gc
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from run_folders import digest, lines, status

from seresnext.checkpoint import mirror as mirror_module
from seresnext.checkpoint import mirror_files, store
from seresnext.checkpoint.mirror import Mirror
from seresnext.checkpoint.mirror_files import MirrorFiles
from seresnext.distributed import World
from seresnext.errors import CheckpointError, UsageError
from seresnext.run.folder import RunFolder
from seresnext.run.validate import validate
from seresnext.training.step import TrainingStep

SETTINGS = ["length=4st", "evaluation.every=2st", "ema=null", "checkpoint={every: 1st, keep: 9}", "logging.every=1st"]
open_folder = RunFolder.open


class MachineLost(BaseException):
    """A stand-in for the end of a machine: no code of the program catches this exception."""


@pytest.fixture(autouse=True)
def in_process(narrow: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open and lock run folders, and upload in this process."""
    monkeypatch.setattr(RunFolder, "open", open_folder)
    monkeypatch.setattr(Mirror, "_upload", lambda self, request: mirror_files.perform(request))


@pytest.fixture
def start(train_synthetic: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`start(name, *settings, steps=4, mirror=True, resume="auto") -> run`: train, and lose the machine after `steps`.

    The newest checkpoint is uploaded before the machine is lost.
    """
    call = TrainingStep.__call__

    def start(name: str, *settings: str, steps: int = 4, mirror: bool = True, resume: str = "auto") -> Path:
        def step(self: TrainingStep, batches: Any, *, step: int, **options: Any) -> Any:
            if step == steps:
                raise MachineLost
            return call(self, batches, step=step, **options)

        gc.collect()  # Release the locks of earlier starts.
        address = [f"checkpoint.mirror={tmp_path / 'mirror'}"] if mirror else []
        monkeypatch.setattr(TrainingStep, "__call__", step)
        with suppress(MachineLost):
            train_synthetic(tmp_path / name, [*SETTINGS, *address, *settings], resume=resume)
        return tmp_path / name

    return start


def test_a_lost_machine_costs_nothing(start, tmp_path: Path):
    """The bits, the best checkpoint and the metrics are those of a run on one machine."""
    whole = start("whole", mirror=False)
    first = start("first", steps=3)
    assert (status(first)["state"], status(first)["mirrored_step"]) == ("failed", 3)
    second = start("second")
    assert digest(second) == digest(whole)
    assert lines(second) == lines(whole)
    best = status(whole)["best"]
    assert status(second)["best"] == best
    assert store.verify(second / "checkpoints" / "best.safetensors")["step"] == str(best["step"])
    assert status(second)["mirrored_step"] == 4
    assert "fetched the checkpoint of step 3" in (second / "log.txt").read_text()


@pytest.mark.full
def test_if_all_local_ones_are_damaged_the_mirror_has_one(start, tmp_path: Path):
    run = start("run", steps=2)
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    assert status(start("run"))["state"] == "finished"
    for path in [*(run / "checkpoints").iterdir(), *(tmp_path / "mirror").rglob("*.safetensors")]:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the .* checkpoints in .*mirror is valid"):
        start("run")


@pytest.mark.full
def test_a_run_that_begins_again_from_an_older_step_replaces_the_later_ones(start, tmp_path: Path):
    run = start("run", steps=3)
    first = run / "checkpoints" / "step-00000001.safetensors"
    start("run", steps=2, resume=str(first))
    other = start("other", steps=2)
    assert list(store.steps(other / "checkpoints"))[-1] == 2
    assert "fetched the checkpoint of step 2" in (other / "log.txt").read_text()


def test_a_refused_start_changes_nothing_at_the_address(start, tmp_path: Path):
    start("run", steps=2)
    before = sorted((tmp_path / "mirror").rglob("*"))
    with pytest.raises(UsageError, match=r"optimizer\.lr: 0\.01 -> 0\.5"):
        start("fresh", "optimizer.lr=0.5")
    assert not (tmp_path / "fresh").exists()
    other = start("other", mirror=False, steps=1)
    for name, resume in (("other", "auto"), ("fork", str(other / "checkpoints" / "last.safetensors"))):
        with pytest.raises(UsageError, match="belongs to another run"):
            start(name, resume=resume)
    assert not (tmp_path / "fork").exists()
    with pytest.raises(UsageError, match="is in the run folder"):
        start("other", f"checkpoint.mirror={other / 'mirror'}")
    assert sorted((tmp_path / "mirror").rglob("*")) == before
    start("other", steps=1, resume="never")  # The control: a new prefix.
    assert len([path for path in (tmp_path / "mirror").iterdir() if path.name != "owners"]) == 2
    assert len(list((tmp_path / "mirror" / "owners").iterdir())) == 2
    assert (other / "earlier-1").is_dir()


@pytest.mark.full
def test_training_does_not_need_the_store(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The run ends, and the same command uploads the missing checkpoint. The newer local checkpoint is used."""
    failure = {"uploaded": False, "problem": "no answer", "is_final": True}
    whole = start("whole", mirror=False)
    start("run", steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_upload", lambda self, request: failure)
        patch.setattr(mirror_module, "END_SECONDS", 0.5)
        run = start("run")
    assert digest(run) == digest(whole)
    assert (status(run)["state"], status(run)["mirrored_step"]) == ("finished", None)
    log = (run / "log.txt").read_text()
    assert log.count("no answer; training continues") == 1
    assert "lacks the checkpoint of step 4" in log
    start("run")
    assert status(run)["mirrored_step"] == 4
    assert "fetched" not in (run / "log.txt").read_text()


@pytest.mark.full
def test_a_mirror_that_only_a_checkpoint_names_is_not_contacted(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = start("first", steps=2) / "checkpoints" / "last.safetensors"
    asked, open_files = [], MirrorFiles.__init__

    def watched(self: MirrorFiles, address: str) -> None:
        asked.append(address)
        open_files(self, address)

    monkeypatch.setattr(MirrorFiles, "__init__", watched)
    assert "mirror" in store.verify(path)["recipe"]
    start("fork", mirror=False, resume=str(path))
    validate(path, World(), Namespace())
    assert asked == []
    start("second", steps=3)  # The control.
    assert str(tmp_path / "mirror") in asked
