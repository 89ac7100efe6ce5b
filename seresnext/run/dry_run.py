"""A dry run: a few steps and one validation batch, to see whether a recipe works and how long the run takes."""

from __future__ import annotations

from seresnext.distributed import World
from seresnext.metrics.console import Console
from seresnext.process.stop_request import StopRequest
from seresnext.recipe.schema import Recipe
from seresnext.run.assemble import Run
from seresnext.run.estimate import Spread, duration, number, peak_memory
from seresnext.run.introduction import introduce
from seresnext.training.plan import Progress


def dry_run(recipe: Recipe, world: World, stop: StopRequest) -> None:
    """Build everything, take a few steps, validate one batch, and print time, memory and an estimate for the whole run.

    Writes nothing.
    """
    console = Console(enabled=world.is_first)
    run = Run(recipe, None, world, console)
    console.print(introduce(run, world))
    seconds, validation_seconds = run.trainer(None, None, Progress(), stop).dry_run()
    step = Spread.of(seconds)
    where = " on the GPU" if world.device.type == "cuda" else ""
    total = step.times(run.plan.total, validation_seconds * run.plan.evaluations)
    console.print(
        f"one step takes {step.text()} s ({number(run.plan.global_size / step.median)} images/s, "
        f"the median of {len(seconds)}), one validation about {number(validation_seconds)} s\n"
        f"peak memory of rank 0: {peak_memory(world.device) / 2**30:.2f} GiB{where}\n"
        f"estimated time for the whole run: {total.text(duration)}: {run.plan.total} steps, "
        f"{run.plan.evaluations} validations, without checkpoints\n"
        "nothing was written"
    )
