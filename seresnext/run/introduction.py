"""The first lines of a run on the terminal."""

from __future__ import annotations

from seresnext.data.decode.regions import DECODER
from seresnext.distributed import World
from seresnext.run.assemble import Run


def introduce(run: Run, world: World) -> str:
    """Return a summary of a run for the terminal: model, images, steps and device."""
    recipe, plan = run.recipe, run.plan
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return (
        f"{recipe.model.name}: {parameters:,} parameters, {recipe.model.num_classes} classes\n"
        f"{len(run.train):,} training and {len(run.val):,} validation images\n"
        f"{plan.total:,} steps ({recipe.length}, {plan.steps_per_epoch:,} an epoch) of {plan.global_size} images: "
        f"{run.order.replicas} micro-batches of {recipe.batch.micro_size} on {world.size} "
        f"{'process' if world.size == 1 else 'processes'}\n"
        f"{world.device.type}, {recipe.runtime.precision}, "
        f"{'compiled' if recipe.runtime.compile is True else 'eager'}, images decoded by {DECODER}"
        f"{_thaw(run)}"
    )


def _thaw(run: Run) -> str:
    """Return a line on the stages that are frozen at first."""
    at, model = run.plan.thaw_at, run.recipe.model
    return f"\n{', '.join(model.frozen)} train after step {at} ({model.frozen_until})" if at else ""
