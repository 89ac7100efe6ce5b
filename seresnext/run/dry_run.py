"""A dry run: two steps and one validation batch, to see whether a recipe works and how long the run takes."""

from __future__ import annotations

import resource
from datetime import timedelta

import torch

from seresnext.distributed import World
from seresnext.metrics.console import Console
from seresnext.process.stop_request import StopRequest
from seresnext.recipe.schema import Recipe
from seresnext.run.assemble import Run
from seresnext.training.plan import Progress


def dry_run(recipe: Recipe, world: World, stop: StopRequest) -> None:
    """Build everything, take two steps, validate one batch, and print time, memory and an estimate for the whole run.

    Writes nothing.
    """
    console = Console(enabled=world.is_first)
    run = Run(recipe, None, world, console)
    console.print(run.introduction())
    timings = run.trainer(None, None, Progress(), stop).dry_run()
    total = timings.step_seconds * run.plan.total + timings.validation_seconds * run.plan.evaluations
    console.print(
        f"one step takes {timings.step_seconds:.3g} s "
        f"({run.plan.global_size / timings.step_seconds:.4g} images/s), one validation about "
        f"{timings.validation_seconds:.3g} s\n"
        f"peak memory of rank 0: {_peak_memory(world)}\n"
        f"estimated time for the whole run: {timedelta(seconds=round(total))} ({run.plan.total} steps, "
        f"{run.plan.evaluations} validations), without checkpoints\n"
        "nothing was written"
    )


def _peak_memory(world: World) -> str:
    if world.device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(world.device) / 2**30:.2f} GiB on the GPU"
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{kibibytes / 2**20:.2f} GiB"
