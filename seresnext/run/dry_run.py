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
    step_seconds, validation_seconds = run.trainer(None, None, Progress(), stop).dry_run()
    total = step_seconds * run.plan.total + validation_seconds * run.plan.evaluations
    if world.device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated(world.device) / 2**30:.2f} GiB on the GPU"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"  # The kernel counts kibibytes.
    console.print(
        f"one step takes {step_seconds:.3g} s ({run.plan.global_size / step_seconds:.4g} images/s), "
        f"one validation about {validation_seconds:.3g} s\n"
        f"peak memory of rank 0: {memory}\n"
        f"estimated time for the whole run: {timedelta(seconds=round(total))} ({run.plan.total} steps, "
        f"{run.plan.evaluations} validations), without checkpoints\n"
        "nothing was written"
    )
