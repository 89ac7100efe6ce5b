"""A refused start makes no folder, and changes nothing in a run folder except the status and the log."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seresnext import cli
from seresnext.checkpoint import store
from seresnext.errors import CheckpointError, DataError, Failure, UsageError
from seresnext.metrics.status import read_status
from seresnext.process.signals import StopRequest
from seresnext.run.folder import RunFolder

SETTINGS = ["length=3st", "evaluation.every=1st", "checkpoint={every: 1st, keep: 9}"]


@pytest.fixture(scope="module")
def images(tiny_image_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_image_folder(classes=3, per_class=8, size=40), tmp_path_factory.mktemp("own") / "data")


@pytest.fixture(scope="module")
def start(train_synthetic: Callable[..., Path], images: Path) -> Callable[..., Path]:
    """`start(run, *settings, root=images, resume="auto", allowed=())`: train on the images below `root`."""

    def start(run: Path, *settings: str, root: Path = images, **options: Any) -> Path:
        data = f"data={{root: {root}, image_size: 32, workers: 0}}"
        return train_synthetic(run, [data, *SETTINGS, *settings], **options)

    return start


@pytest.fixture(scope="module")
def finished(start: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    return start(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder: Path) -> dict[str, str]:
    """Return the digests of all files in a folder by name, without the two files that a refusal may write."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if path.name not in ("status.json", "log.txt")
    }


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    """Change the content of a checkpoint and recompute the digest."""
    tensors, metadata = store.read(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    del metadata["digest"]
    change(tensors, metadata)
    store.write(path, tensors, metadata)


def spoil(name: str, value: float) -> Callable[..., object]:
    return lambda tensors, metadata: tensors[name].reshape(-1)[:1].fill_(value)


def say(name: str, **facts: object) -> Callable[..., object]:
    def change(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata[name] = json.dumps({**json.loads(metadata[name]), **facts})

    return change


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


FIRST, LAST = "step-00000001.safetensors", "step-00000003.safetensors"
REWRITTEN = {
    "a tensor less": lambda tensors, metadata: tensors.pop("model.last_linear.bias"),
    "another shape": lambda tensors, metadata: tensors.update({"model.last_linear.bias": torch.ones(4)}),
    "another dtype": lambda tensors, metadata: tensors.update({"ema.last_linear.bias": torch.ones(3).double()}),
    "not finite": spoil("optimizer.momentum.last_linear.bias", float("nan")),
    "a variance": spoil("ema.layer0.bn1.running_var", -1.0),
    "facts": say("progress", unlogged_loss=float("nan")),
    "beyond the end": lambda tensors, metadata: metadata.update(
        step="7", progress=json.dumps({**json.loads(metadata["progress"]), "step": 7})
    ),
}


@pytest.mark.parametrize("file", [FIRST, LAST])  # A checkpoint in the middle, and the last checkpoint.
@pytest.mark.parametrize("case", REWRITTEN)
@pytest.mark.full
def test_a_checkpoint_that_is_refused(run: Path, start: Callable[..., Path], case: str, file: str) -> None:
    path = run / "checkpoints" / file
    for pointer in store.POINTERS:
        (run / "checkpoints" / f"{pointer}.safetensors").unlink()
    rewrite(path, REWRITTEN[case])
    before = contents(run)
    with pytest.raises(CheckpointError, match=file):
        start(run, resume=str(path))
    assert contents(run) == before
    assert_recorded(run, file)


def assert_recorded(run: Path, words: str) -> None:
    """Assert that status and log of a run of three steps have the refusal."""
    status = read_status(run)
    assert (status["state"], status["step"]) == ("failed", 3)
    assert words in status["reason"]
    assert "rank" not in status["reason"].partition("\n")[0]
    assert words in (run / "log.txt").read_text().rpartition(" error: ")[2]


@pytest.mark.parametrize(
    ("settings", "allowed", "resume", "words", "error"),
    [
        (["optimizer.lr=0.5"], (), "auto", "optimizer.lr: 0.01 -> 0.5", UsageError),
        (["optimizer.lr=0.5"], ("length",), "checkpoints/" + FIRST, "length,optimizer.lr", UsageError),
        (["model.name=seresnext50"], (), "checkpoints/" + FIRST, "model.name", UsageError),
        (["model.num_classes=4"], ("model",), "never", "model.num_classes=3", DataError),
        (["model.weights=nowhere.pth"], (), "never", "nowhere.pth", CheckpointError),
        ([], (), "nowhere.safetensors", "nowhere.safetensors", UsageError),
        (["data.root={tmp}/none"], (), "never", "none", DataError),
        (["data.root={run}"], (), "never", "overlap", UsageError),
    ],
)
def test_a_start_that_is_refused(run, start, tmp_path, settings, allowed, resume, words, error) -> None:
    """The folder also has a damaged checkpoint, which the start skips, and an unfinished save."""
    damage(run / "checkpoints" / LAST)
    (run / "checkpoints" / ".last.safetensors.tmp").touch()
    settings = [setting.format(tmp=tmp_path, run=run) for setting in settings]
    resume = str(run / resume) if resume.startswith("checkpoints") else resume
    before = contents(run)
    with pytest.raises(error, match=words):
        start(run, *settings, resume=resume, allowed=allowed)
    assert contents(run) == before
    if words != "overlap":  # This refusal comes before the lock of the folder; the command records it.
        assert_recorded(run, words)


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("refusal", ["data", "recipe", "checkpoint", "resume"])
def test_no_folder_is_made(start, tmp_path: Path, refusal: str, made: bool) -> None:
    """An empty folder that existed before stays empty."""
    run = tmp_path / "runs" / "new"
    if made:
        run.mkdir(parents=True)
    settings = {
        "data": ["model.num_classes=4"],
        "recipe": ["data.progressive={min_size: 16, start_ramp: 2ep, end_ramp: 4st}"],
        "checkpoint": ["model.weights=nowhere.pth"],
        "resume": [],
    }
    resume = "nowhere.safetensors" if refusal == "resume" else "auto"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "open", OPEN)
        with pytest.raises(Failure):
            start(run, *settings[refusal], resume=resume)
    assert run.exists() == made
    assert list(tmp_path.rglob("*")) == ([run.parent, run] if made else [])


def test_the_command_refuses_an_output_that_is_no_text_or_among_the_data(images, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    before = contents(images)
    for output, words in (("", "--output"), (" ", "--output"), (f"{images}/train", "/train"), (f"{images}", "data")):
        arguments = ["--recipe", "digits", "--data", str(images), "--output", output, "--resume", "never"]
        assert cli.main(["train", *arguments], StopRequest()) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert contents(images) == before


def test_the_command_records_what_it_refuses_before_a_run_is_known(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is the one of --output, or the default folder of the recipe. A missing folder is not made."""
    monkeypatch.chdir(tmp_path)
    default = shutil.copytree(run, tmp_path / "runs" / "digits")
    wrong = ["train", "--recipe", "digits", "--set", "optimizer.learning=3"]
    for folder, more in ((run, ["--output", str(run)]), (default, [])):
        (folder / "lock").touch()  # The fixture `narrow` leaves out the lock of a run.
        before = contents(folder)
        for harmless in ("--print-recipe", "--dry-run", "--device=x"):  # The last word cannot be parsed.
            assert cli.main([*wrong, *more, harmless], StopRequest()) == 2
            assert read_status(folder)["state"] == "finished"
        assert cli.main([*wrong, *more], StopRequest()) == 2
        assert_recorded(folder, "optimizer.learning")
        assert contents(folder) == before
    assert cli.main([*wrong, "--output", "none"], StopRequest()) == 2
    assert not (tmp_path / "none").exists()


OPEN = RunFolder.open  # The original, before the fixture `narrow` replaces this method.


@pytest.mark.full
def test_the_control_changes_the_folder(run: Path, start: Callable[..., Path]) -> None:
    for name in (LAST, "last.safetensors"):
        damage(run / "checkpoints" / name)
    start(run)
    assert read_status(run)["state"] == "finished"
    assert (run / "checkpoints" / f"{LAST}.corrupt").exists()
    assert list(store.steps(run / "checkpoints")) == [1, 2, 3]


def add_image(images: Path, split: str) -> None:
    first = next((images / split).glob("*/*.jpg"))
    shutil.copy(first, first.with_name("added.jpg"))


@pytest.mark.full
def test_other_validation_images_are_refused_until_allowed(run, start, images, tmp_path, capsys) -> None:
    """An allowed change repeats the last validation, and `best` is chosen among validations of the new images."""
    copy = shutil.copytree(images, tmp_path / "images")
    add_image(copy, "val")
    before = contents(run)
    with pytest.raises(DataError, match=r"12 validation(?s:.*)13"):
        start(run, root=copy)
    assert contents(run) == before
    capsys.readouterr()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    start(run, root=copy, allowed=("dataset",))
    out = capsys.readouterr().out
    assert out.count("best.superseded-1.safetensors") == 1
    assert "13 validation images" in out
    old = json.loads(store.verify(run / "checkpoints" / "best.superseded-1.safetensors")["best"])
    new = json.loads(store.verify(run / "checkpoints" / "best.safetensors")["best"])
    assert new["step"] == 3
    assert old["top1"] * 12 / 100 == pytest.approx(round(old["top1"] * 12 / 100))
    assert new["top1"] * 13 / 100 == pytest.approx(round(new["top1"] * 13 / 100))
    measured = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["num_images"] for line in measured if line["event"] == "validate"] == [12, 12, 12, 12, 13, 13]
    assert len(measured) == len(lines)
    start(run, root=copy)
    assert "best.superseded" not in capsys.readouterr().out  # The file is renamed only once.


@pytest.mark.full
def test_another_environment_is_one_line(run: Path, start: Callable[..., Path], capsys) -> None:
    """So are a checkpoint of 0.1.0, which has no record of validation images, and a change that is permitted."""
    for path in set(run.glob("checkpoints/*")):
        if path.name != "step-00000002.safetensors":
            path.unlink()
    for change in (say("dataset", val=None), say("environment", threads=77)):
        rewrite(run / "checkpoints" / "step-00000002.safetensors", change)
    capsys.readouterr()
    start(run, "model.weights=nowhere.pth", allowed=("model.weights",))
    lines = capsys.readouterr().out.splitlines()
    for words in (("step-00000002.safetensors", "record"), ("threads 77 -> ",), ("model.weights: ", "nowhere.pth")):
        assert len([line for line in lines if all(word in line for word in words)]) == 1
    metadata = store.verify(run / "checkpoints" / LAST)
    assert json.loads(metadata["dataset"])["val"]["num_images"] == 12
