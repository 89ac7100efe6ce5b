"""Whole runs within the test's process: a small network and synthetic images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import small_digits

from seresnext.distributed import World
from seresnext.process.signals import StopRequest
from seresnext.recipe.load import load_recipe
from seresnext.recipe.schema import Recipe
from seresnext.run.folder import RunFolder
from seresnext.run.train import train

SYNTHETIC = [
    "data.format=synthetic", "data.synthetic_images=16", "data.image_size=32", "data.workers=0", "model.num_classes=3",
    "batch={global_size: 8, micro_size: 4}", "optimizer.lr=0.01", "ema={decay: 0.9}", "schedule={name: cosine}",
    "runtime.precision=fp32", "runtime.compile=false", "logging.sinks=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def narrow() -> Iterator[pytest.MonkeyPatch]:
    """Replace the network by one of 20,000 weights. No run folder is locked: locks last to the end of the process."""
    with pytest.MonkeyPatch.context() as patch:
        small_digits.install(patch.setattr)
        patch.setattr(RunFolder, "open", lambda self: self.checkpoints.mkdir(parents=True, exist_ok=True))
        yield patch


@pytest.fixture(scope="module")
def load_synthetic() -> Callable[[Sequence[str]], Recipe]:
    """`load_synthetic(settings)`: the recipe with these settings. `data={...}` gives other images."""
    return lambda settings: load_recipe("seresnext26", [*SYNTHETIC, *settings]).recipe


@pytest.fixture(scope="module")
def train_synthetic(
    narrow: pytest.MonkeyPatch, load_synthetic: Callable[[Sequence[str]], Recipe]
) -> Callable[..., Path]:
    """`train_synthetic(output, settings, stop=None, resume="auto", allowed=(), world=None) -> output`."""

    def run(
        output: Path,
        settings: Sequence[str],
        stop: StopRequest | None = None,
        resume: str = "auto",
        allowed: Sequence[str] = (),
        world: World | None = None,
    ) -> Path:
        recipe, stop = load_synthetic(settings), stop or StopRequest()
        train(recipe, world or World(), stop, output=output, resume=resume, allow_changed=allowed)
        return output

    return run
