"""Machines with copies of the data of their own, here one folder a rank: all of them have to be the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from run_folders import status

pytestmark = pytest.mark.runs

# As rank 1 on another machine: the same relative path there is another folder.
ELSEWHERE = """
import os, runpy, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
os.chdir(os.path.join({folder!r}, os.environ["RANK"]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def program(narrow_program: str) -> str:
    return narrow_program


@pytest.fixture
def copies(images: Path, tmp_path: Path) -> Path:
    """A folder for each rank, with the images in `data`."""
    for rank in range(2):
        shutil.copytree(images, tmp_path / str(rank) / "data")
    return tmp_path


@pytest.fixture
def launch(torchrun, train_arguments, copies: Path, tmp_path: Path) -> Callable:
    """`launch()`: three steps of training, each rank with its own copy."""

    def run():
        script = tmp_path / "elsewhere.py"
        script.write_text(ELSEWHERE.format(root=str(ROOT), folder=str(copies)))
        program, *arguments = train_arguments(tmp_path / "run", "--data", "data", "--set", "length=3st")
        return torchrun(2, [script, program, *arguments], timeout=90)

    return run


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
