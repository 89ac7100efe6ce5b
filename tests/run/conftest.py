"""Whole runs within the test's process: a small network and synthetic images."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seresnext.distributed import World
from seresnext.models import SENet
from seresnext.process.stop_request import StopRequest
from seresnext.recipe.load import LoadedRecipe, load_recipe
from seresnext.run.folder import RunFolder
from seresnext.run.train import train

SYNTHETIC = [
    "data.format=synthetic", "data.synthetic_images=16", "data.image_size=32", "data.workers=0", "model.num_classes=3",
    "batch={global_size: 8, micro_size: 4}", "optimizer.lr=0.01", "ema={decay: 0.9}", "schedule={name: cosine}",
    "runtime.precision=fp32", "runtime.compile=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def narrow() -> Iterator[pytest.MonkeyPatch]:
    """Replace the network by four narrow blocks. No run folder is locked: locks last to the end of the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "seresnext.models.registry.create_model",
            lambda name, **options: SENet((1, 1, 1, 1), cardinality=1, **options),
        )
        patch.setattr(RunFolder, "open", lambda self: self.checkpoints.mkdir(parents=True, exist_ok=True))
        yield patch


@pytest.fixture(scope="module")
def load_synthetic() -> Callable[[list[str]], LoadedRecipe]:
    """`load_synthetic(settings)`: the recipe with these settings."""
    return lambda settings: load_recipe("seresnext26", [*SYNTHETIC, *settings])


@pytest.fixture(scope="module")
def train_synthetic(
    narrow: pytest.MonkeyPatch, load_synthetic: Callable[[list[str]], LoadedRecipe]
) -> Callable[..., Path]:
    """`train_synthetic(output, settings, stop=StopRequest()) -> output`: train like train.py, resuming if possible."""

    def run(output: Path, settings: list[str], stop: StopRequest | None = None) -> Path:
        try:
            train(
                load_synthetic(settings).recipe,
                World(),
                stop or StopRequest(),
                output=output,
                resume="auto",
                allow_changed=(),
            )
        finally:
            gc.collect()  # Close the files of TensorBoard within this test.
        return output

    return run
