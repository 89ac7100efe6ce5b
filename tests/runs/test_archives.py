"""Training and validation from ImageNet's archives as downloaded, in whole processes."""

from __future__ import annotations

import json
from pathlib import Path

import bad_checkpoints
import pytest
from imagenet_archives import CLASSES, extract, write_archives
from launcher import PYTHON
from run_folders import last_tensors, losses

pytestmark = [pytest.mark.runs, pytest.mark.narrow]

WORDS = ("--set", "data.format=imagenet", "--set", "model.num_classes=4", "--set", "length=4st")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archives(tmp_path_factory.mktemp("archives"), per_class=6, val_per_class=3)


@pytest.fixture(scope="module")
def extracted(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract(archives, tmp_path_factory.mktemp("extracted"))


@pytest.fixture(scope="module")
def trained(module_train, archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return module_train(tmp_path_factory.mktemp("trained") / "run", *WORDS, "--data", str(archives))


def test_archives_train_as_the_extracted_folder_does(trained: Path, extracted: Path, train, tmp_path: Path):
    words = [word.replace("=imagenet", "=folder") for word in WORDS]
    other = train(tmp_path / "run", *words, "--data", str(extracted))
    assert losses(other) == losses(trained)
    ours, theirs = last_tensors(trained), last_tensors(other)
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_run_goes_on_from_archives_to_the_folder(trained: Path, extracted: Path, train, tmp_path: Path):
    """The images are the same, so the fingerprint is; that the format changed has to be allowed."""
    checkpoint = str(trained / "checkpoints" / "last.safetensors")
    words = [word.replace("=imagenet", "=folder").replace("=4st", "=6st") for word in WORDS]
    allowed = ("--allow-changed", "data.format,length", "--resume", checkpoint)
    other = train(tmp_path / "run", *words, "--data", str(extracted), *allowed)
    assert len(losses(other)) == 2


def test_two_ranks_train_from_archives(trained: Path, archives: Path, train, tmp_path: Path):
    """The ranks share one index, which one rank builds."""
    cache = tmp_path / "cache"
    words = (*WORDS, "--data", str(archives), "--set", f"data.cache={cache}")
    assert losses(train(tmp_path / "run", *words, world=2)) == pytest.approx(losses(trained), rel=1e-9)
    assert len(list(cache.glob("*.index"))) == 2


def test_validation_is_the_same_from_archives_and_folder(
    metadata, archives: Path, extracted: Path, run_command, tmp_path
):
    """`--data` names a folder and no format; the content of the folder decides."""
    data = {"data.root": str(archives), "data.format": "imagenet", "model.num_classes": 4}
    facts = {**{f"recipe.{key}": value for key, value in data.items()}, "dataset.classes": sorted(CLASSES)}
    checkpoint = bad_checkpoints.write_checkpoint(
        tmp_path / "c.safetensors", bad_checkpoints.model_weights(4), bad_checkpoints.changed(metadata, facts)
    )
    reports = []
    for root in (None, extracted):
        argv = [PYTHON, "validate.py", "--checkpoint", checkpoint]
        result = run_command([*argv, "--json", tmp_path / "report", *(["--data", root] if root else [])])
        assert result.returncode == 0, result.output
        report = json.loads((tmp_path / "report").read_text())
        reports.append([report[name] for name in ("num_images", "top1", "top5", "loss")])
    assert reports[0][0] == 12
    assert reports[0] == reports[1]
