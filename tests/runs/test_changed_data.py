"""Data that changed between two starts while the times of the folders did not, and copies of data that differ."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from run_folders import status

pytestmark = pytest.mark.runs


@pytest.fixture
def data(images: Path, tmp_path: Path) -> Path:
    """24 images to train and 13 to validate."""
    return shutil.copytree(images, tmp_path / "data")


def set_fixed_times(data: Path) -> None:
    """Give all folders one time, as archives with fixed times and mounted object stores do."""
    for folder in data.glob("*/*"):
        os.utime(folder, (0, 0))


@pytest.mark.full
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


# A rank on another machine: a relative path leads to another file there.
ELSEWHERE = f"""
import os, runpy, sys
os.chdir(sys.argv[1] + os.environ["RANK"])
sys.argv = sys.argv[2:]
sys.path[:0] = [os.path.dirname(sys.argv[0]), {str(ROOT)!r}]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("differs", [False, True])
def test_a_copy_that_differs_ends_all_with_the_rank_that_has_it(
    run_world: Callable, train_arguments: Callable, images: Path, tmp_path: Path, differs: bool
):
    """The control: equal copies are the same data."""
    for rank in range(2):
        shutil.copytree(images, tmp_path / str(rank) / "data")
    if differs:
        first = tmp_path / "1" / "data" / "train" / "class_0" / "0.jpg"
        first.rename(first.with_name("00.jpg"))
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    program, *arguments = train_arguments(tmp_path / "run", "--data", "data", "--set", "length=3st")
    result = run_world(2, [tmp_path / "elsewhere.py", f"{tmp_path}/", ROOT / program, *arguments], timeout=90)
    if differs:
        assert result.returncode != 0
        assert result.stderr.count("error: rank 1 on") == 1, result.output
        assert "give all machines the same data" in result.stderr
    else:
        assert result.returncode == 0, result.output
        assert status(tmp_path / "run")["state"] == "finished"
