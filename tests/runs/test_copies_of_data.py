"""Machines with own copies of the data, here one folder a rank: all copies must be the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import status

pytestmark = [pytest.mark.runs, pytest.mark.narrow]


@pytest.fixture
def copies(images: Path, tmp_path: Path) -> Path:
    """A folder for each rank, with the images in `data`."""
    for rank in range(2):
        shutil.copytree(images, tmp_path / str(rank) / "data")
    return tmp_path


@pytest.fixture
def launch(train_elsewhere, copies: Path) -> Callable:
    """`launch()`: three steps of training, each rank with another copy."""
    return lambda: train_elsewhere(copies / "run", "--data", "data", "--set", "length=3st")


def test_equal_copies_are_the_same_data(launch, tmp_path):
    result = launch()
    assert result.returncode == 0, result.output
    assert status(tmp_path / "run")["state"] == "finished"


def test_a_copy_that_differs_ends_all_with_the_rank_that_has_it(launch, copies):
    (copies / "1" / "data" / "train" / "class_0" / "0.jpg").rename(
        copies / "1" / "data" / "train" / "class_0" / "00.jpg"
    )
    result = launch()
    assert result.returncode != 0
    assert result.stderr.count("error: rank 1 on") == 1, result.output
    assert "give all machines the same data" in result.stderr
