"""A loss curve that no refactoring may move: 8 steps of SE-ResNeXt-26 in float64 on synthetic images."""

from pathlib import Path

import pytest

from seresnext.distributed import World
from seresnext.metrics.console import Console
from seresnext.process.signals import StopRequest
from seresnext.recipe.load import load_recipe
from seresnext.run.assemble import Run
from seresnext.training.plan import Progress

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_cpu.txt"
# The learning rate is small: BatchNorm over few values multiplies a difference in the last bit by up to 100 each step.
SETTINGS = [
    "model.num_classes=10", "model.drop_rate=0.2", "data.format=synthetic", "data.synthetic_images=24",
    "data.workers=0", "batch.global_size=8", "batch.micro_size=4", "length=8st", "schedule.warmup=2st",
    "optimizer.lr=1e-4", "data.image_size=64", "logging.every=1st", "evaluation.every=8st", "runtime.precision=fp64",
]  # fmt: skip


def loss_curve(*changes: str) -> list[float]:
    run = Run(load_recipe("digits", [*SETTINGS, *changes]).recipe, None, World(), Console(enabled=False))
    step = run.trainer(None, None, Progress(), StopRequest())
    losses = []
    step.logger.write = lambda event, left=None: losses.append(event)  # type: ignore[method-assign]
    step.fit()
    return [event["loss"] for event in losses if event["event"] == "train"]


@pytest.fixture(scope="module")
def curve() -> list[float]:
    return loss_curve()


def test_the_golden_curve(curve):
    """Equal to ten digits. The order of sums differs between processors and releases of torch."""
    golden = [float(line) for line in GOLDEN.read_text().splitlines()]
    assert len(golden) == 8
    assert curve == pytest.approx(golden, rel=1e-10)


@pytest.mark.full
def test_a_changed_weight_decay_moves_it(curve):
    """The control: the smallest influence in the recipe changes the curve."""
    other = loss_curve("optimizer.weight_decay=2e-4")
    assert other[0] == pytest.approx(curve[0], rel=1e-12)
    assert other[-1] != pytest.approx(curve[-1], rel=1e-10)
