"""A run's objects, each as the recipe says, and made ready for the images that will come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from seresnext.assemble import parts
from seresnext.assemble.run import Run
from seresnext.distributed import World
from seresnext.metrics.console import Console
from seresnext.recipe.load import LoadedRecipe
from seresnext.training import step as step_module


@pytest.fixture
def make_run(narrow: pytest.MonkeyPatch, load_synthetic: Callable[[list[str]], LoadedRecipe]) -> Callable[..., Run]:
    """`make_run(settings, world=World())`: the run of a narrow network on made-up images."""
    return lambda settings, world=None: Run(
        load_synthetic(settings).values, {}, world or World(), Console(enabled=False)
    )


# ------------------------------------------------------------------------------------------------ the warm-up

GREY = "data={format: synthetic, synthetic_images: 16, image_size: 32, workers: 0, mean: [0.5], std: [0.5]}"


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts the graphs that are compiled, and runs them as they are."""
    counter = CompileCounter()
    torch._dynamo.reset()
    monkeypatch.setattr(parts, "resolve_compile", lambda requested, device: (requested, None))
    monkeypatch.setattr(step_module, "compile_forward", lambda model: torch.compile(model, backend=counter))
    return counter


def first_step(run: Run) -> None:
    step = run.build_step()
    with run.train_batches(step.own_replicas, 0, 1) as batches:
        step.read(0, step(batches, step=0, lr=0.1, stop=False))


@pytest.mark.parametrize(
    "settings",
    [
        ["runtime.channels_last=true"],
        ["runtime.channels_last=false"],
        ["mix.mixup=0.2"],
        ["mix.cutmix=1"],
        ["model.in_channels=1", GREY],
    ],
    ids=lambda settings: settings[0],
)
def test_what_the_warm_up_compiles_the_first_step_uses(make_run, graphs, settings):
    first_step(make_run(["runtime.compile=true", *settings]))
    assert graphs.frame_count == 1


def test_another_layout_would_be_compiled_again(make_run, graphs, monkeypatch):
    """The control."""
    images = parts.stand_in_batch

    def contiguous(recipe, device):
        return tuple(tensor.contiguous() for tensor in images(recipe, device))

    monkeypatch.setattr(parts, "stand_in_batch", contiguous)
    first_step(make_run(["runtime.compile=true"]))
    assert graphs.frame_count == 2


def test_the_warm_up_is_at_the_largest_size_of_training(make_run, monkeypatch):
    seen = []
    monkeypatch.setattr(step_module.TrainingStep, "warm_up", lambda self, images, labels: seen.append(images.shape))
    make_run([]).build_step()
    make_run(["data.image_size=96", "data.progressive={min_size: 32, end_ramp: 1ep}"]).build_step()
    make_run(["data.image_size=96", "data.progressive={min_size: 32, max_size: 64, end_ramp: 1ep}"]).build_step()
    assert seen == [(4, 3, 32, 32), (4, 3, 96, 96), (4, 3, 64, 64)]
