"""The first lines of a run on the terminal."""

from __future__ import annotations

from seresnext.data.decode.regions import DECODER
from seresnext.distributed import World
from seresnext.run.assemble import Run


def introduce(run: Run, world: World) -> str:
    """Return a summary of a run for the terminal: model, images, steps and device."""
    recipe, plan = run.recipe, run.plan
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    stages = ", ".join(recipe.model.frozen)
    thaw = f"\n{stages} train after step {plan.thaw_at} ({recipe.model.frozen_until})" if plan.thaw_at else ""
    return (
        f"{recipe.model.name}: {parameters:,} parameters, {recipe.model.num_classes} classes\n"
        f"{len(run.train):,} training and {len(run.val):,} validation images\n"
        f"{plan.total:,} steps ({recipe.length}, {plan.steps_per_epoch:,} an epoch) of {plan.global_size} images: "
        f"{run.order.replicas} micro-batches of {recipe.batch.micro_size} on {world.size} "
        f"{'process' if world.size == 1 else 'processes'}\n"
        f"{world.device.type}, {recipe.runtime.precision}, "
        f"{'compiled' if recipe.runtime.compile is True else 'eager'}, images decoded by {DECODER}{thaw}"
    )
