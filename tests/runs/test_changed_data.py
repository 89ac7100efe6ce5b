"""Data that changed between two starts while the times of the folders did not change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.runs, pytest.mark.narrow]


@pytest.fixture
def data(images: Path, tmp_path: Path) -> Path:
    """24 images to train and 13 to validate."""
    return shutil.copytree(images, tmp_path / "data")


def set_fixed_times(data: Path) -> None:
    """Give all folders one time, as archives with fixed times and mounted object stores do."""
    for folder in data.glob("*/*"):
        os.utime(folder, (0, 0))


def test_new_images_are_trained_and_one_rank_lists(
    run_world: Callable, train_arguments: Callable, data: Path, tmp_path: Path
):
    cache = tmp_path / "cache"
    settings = ("--data", str(data), "--set", f"data.cache={cache}", "--set", "length=1st", "--resume", "never")
    settings += ("--set", "schedule={name: cosine, warmup: 0st}")
    for number in (24, 25):
        if number == 25:
            shutil.copy(data / "train" / "class_0" / "0.jpg", data / "train" / "class_0" / "new.jpg")
        set_fixed_times(data)
        result = run_world(2, train_arguments(tmp_path / "run", *settings))
        assert result.returncode == 0, result.output
        assert f"\n{number} training and 13 validation images" in result.stdout
        for split in ("train", "val"):
            assert result.output.count(f"warning: {data}/{split}: ") == 1
    assert len(list(cache.glob("*.record"))) == 4  # One for each start and split, not for each rank.
    assert len(list(cache.glob("*.index"))) == 3
