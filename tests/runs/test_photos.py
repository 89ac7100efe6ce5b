"""Class folders on one and two ranks: one process of the machine reads the photos, and all ranks divide alike."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import events

pytestmark = [pytest.mark.runs, pytest.mark.full]


def test_ranks_divide_alike(run_world: Callable, train_arguments: Callable, images: Path, tmp_path: Path):
    photos = tmp_path / "photos"
    for split in ("train", "val"):
        for folder in (images / split).iterdir():
            shutil.copytree(folder, photos / folder.name / split)  # Nested folders.
    (photos / "class_0" / "empty.jpg").touch()
    found = []
    for world in (1, 2):
        settings = ["data.split={val: 0.3}", "model.num_classes=auto", "length=4st", f"data.cache={tmp_path}/{world}"]
        words = [word for setting in settings for word in ("--set", setting)]
        output = tmp_path / f"run{world}"
        result = run_world(world, train_arguments(output, *words, "--data", str(photos)))
        assert result.returncode == 0, result.output
        assert result.output.count("class_0/empty.jpg is empty") == 1
        assert len(list((tmp_path / str(world)).glob("*.json"))) == 1  # Of both splits and all ranks.
        found.append(((output / "split.csv").read_text(), events(output, "validate")))
    assert found[0][0] == found[1][0]
    assert {",train", ",val"} <= {line[line.rindex(",") :] for line in found[0][0].splitlines()}
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-9)
