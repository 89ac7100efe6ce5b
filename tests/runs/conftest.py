"""A recipe small enough that whole processes train in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
QUIET = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
RECIPE = """
model: {name: seresnext26, num_classes: 3, drop_rate: 0.2}
data: {image_size: 32, workers: 1}
augment: {crop_scale: [0.5, 1.0]}
batch: {global_size: 8, micro_size: 4}
length: 8st
optimizer: {lr: 0.002}
schedule: {name: cosine, warmup: 2st}
ema: {decay: 0.9}
evaluation: {every: 4st}
checkpoint: {every: 4st, keep: 10}
logging: {every: 1st}
runtime: {precision: fp64}
"""


@pytest.fixture(scope="session")
def images(tiny_image_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes, 24 images to train and 13 to validate, which 3 ranks do not divide."""
    root = tmp_path_factory.mktemp("images") / "root"
    shutil.copytree(tiny_image_folder(classes=3, per_class=8, size=40, val_per_class=4), root)
    extra = root / "val" / "class_0" / "extra.jpg"
    extra.write_bytes((root / "train" / "class_0" / "0.jpg").read_bytes())
    return root


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's file."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def train_arguments(recipe: Path, images: Path) -> Callable[..., list[str]]:
    """`train_arguments(output, *more) -> [...]`: the arguments of a run of the tiny recipe, `train.py` first."""

    def arguments(output: Path, *more: str) -> list[str]:
        return ["train.py", "--recipe", str(recipe), "--data", str(images), "--output", str(output), *more]

    return arguments


@pytest.fixture(scope="module")
def module_train(recipe: Path, images: Path) -> Callable[..., Path]:
    """Like `train` with one process, for fixtures that last for a module."""

    def run(output: Path, *more: str) -> Path:
        arguments = ["train.py", "--recipe", recipe, "--data", images, "--output", output, *more]
        subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **QUIET}, check=True, capture_output=True
        )
        return output

    return run


@pytest.fixture
def train(run_command: Any, torchrun: Any, train_arguments: Callable[..., list[str]]) -> Callable[..., Path]:
    """`train(output, *more, world=1) -> output`: a run of the tiny recipe that ends well."""

    def run(output: Path, *more: str, world: int = 1) -> Path:
        arguments = train_arguments(output, *more)
        result = run_command([sys.executable, *arguments]) if world == 1 else torchrun(world, arguments)
        assert result.returncode == 0, result.output
        return output

    return run
