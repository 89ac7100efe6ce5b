"""A training run: built from the recipe, started or resumed, and trained to the end."""

import json
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from seresnext.data.decode.regions import DECODER
from seresnext.data.readers.photos import split_table
from seresnext.distributed import World, launcher_id
from seresnext.metrics.console import Console
from seresnext.metrics.status import read_status
from seresnext.process.signals import StopRequest
from seresnext.recipe import Recipe, to_values, to_yaml
from seresnext.run.assemble import Run
from seresnext.run.environment import compare_environments
from seresnext.run.folder import RunFolder, check_output
from seresnext.run.resume import (
    LoadedCheckpoint,
    changes_validation,
    check_compatible,
    find_checkpoint,
    restored_progress,
    rewind_folder,
)
from seresnext.training.nonfinite import nonfinite_validation
from seresnext.training.plan import Progress, describe_end
from seresnext.training.profile import UNTRACED_STEPS, StepProfiler


def train(
    recipe: Recipe,
    world: World,
    stop: StopRequest,
    *,
    output: Path,
    resume: str,
    allow_changed: Collection[str],
    profile: int = 0,
) -> bool:
    """Train by a recipe in a run folder, from the last checkpoint if there is one. Return False after a stop request.

    Raises a Failure for a problem that the user has to fix. `status.json` in the folder states how the run ended.
    `profile` is the number of steps to trace (training/profile.py).
    """
    world.set_timeout(recipe.runtime.collective_timeout)
    folder = RunFolder(output, world, recipe.checkpoint.mirror)
    with world.agreeing():
        check_output(output, recipe.data)
        notice = folder.open()
    stop.defer()
    console = Console(enabled=world.is_first, log=output / "log.txt")
    if notice:
        console.print(f"warning: {notice}")
    last_step = read_status(output).get("step")
    progress = Progress(step=last_step if type(last_step) is int else 0)  # for the status, until the run is loaded
    with ExitStack() as at_end, folder.tracking_status(console, lambda: progress.step):
        if folder.mirror:
            folder.mirror.report = console.print
            at_end.callback(folder.mirror.close)  # waits for the last upload
        run, checkpoint, progress = _begin(recipe, world, folder, console, resume, allow_changed)
        total = run.plan.total
        if run.plan.is_complete(progress):
            console.print(f"{output} is complete, nothing to do")
            _finish(run, folder, progress, console)
            return True
        trainer = run.trainer(folder, checkpoint, progress, stop)
        at_end.callback(trainer.logger.close)
        first = progress.step + UNTRACED_STEPS
        trainer.profiler = StepProfiler(range(first, first + profile), output, world.rank, console.print)
        console.print(introduce(run, world))
        if checkpoint:
            console.print(f"resuming from {checkpoint.path}, after step {progress.step} of {total}")
        saved_step = progress.step if checkpoint else None
        folder.update_status(step=progress.step, saved_step=saved_step, total_steps=total, best=progress.best)
        if trainer.fit():
            _finish(run, folder, progress, console)
            return True
        signals = ", ".join(sorted(set(filter(None, world.gather(stop.signal)))))
        folder.write_status("preempted", progress.step, f"stopped by {signals}")
        where = f"after step {progress.step} of {total}"
        console.print(f"stopped {where} by {signals}, and saved; the same command resumes the run")
    return False


def _begin(
    recipe: Recipe, world: World, folder: RunFolder, console: Console, resume: str, allow_changed: Collection[str]
) -> tuple[Run, LoadedCheckpoint | None, Progress]:
    """Return the run, the checkpoint to resume from and the progress, and make the folder agree with the checkpoint.

    All checks that can refuse a start come first. Until all checks have passed, only status and log of an earlier run
    in the folder change.
    """
    launchers = world.gather(launcher_id())
    restarted = world.broadcast(folder.is_restart(launchers))
    checkpoint = find_checkpoint(folder.checkpoints, resume, world, console.print, restarted, folder.mirror)
    run = Run(recipe, checkpoint, world, console)
    starts_over = resume == "never" and not restarted
    progress, changes = Progress(), []
    with world.agreeing():
        if checkpoint:
            progress = restored_progress(checkpoint)
            changes = check_compatible(checkpoint, run.recipe, run.dataset, allow_changed)
            run.check_fits(checkpoint)
        folder.check_writable(starts_over)
    with world.agreeing():
        folder.accept(starts_over, progress.step, checkpoint and checkpoint.path)
    if checkpoint:
        for change in changes:
            console.print(f"changed on resume: {change}")
        if world.is_first and (difference := compare_environments(checkpoint.metadata.environment, run.environment)):
            console.print(difference)
        if checkpoint.metadata.dataset.get("val") is None:
            console.print(f"{checkpoint.path} has no record of the validation images, so the images are not compared")
        validation_changed = changes_validation(checkpoint.metadata, run.dataset, changes)
        progress.best = rewind_folder(checkpoint, folder.checkpoints, world, console.print, validation_changed)
        if validation_changed and progress.evaluated == progress.step > 0:
            progress.evaluated -= 1  # The validation after this step runs again.
    if not run.plan.is_complete(progress):
        with world.agreeing():  # A full disk shows now, before the first pass, which may compile for minutes.
            folder.write("recipe.yaml", to_yaml(to_values(run.recipe)))
            folder.write("environment.json", json.dumps({**run.environment, "launch": launchers}, indent=2) + "\n")
            if run.train.choice:
                folder.write("split.csv", split_table(run.train, run.val))
    return run, checkpoint, progress


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


def _finish(run: Run, folder: RunFolder, progress: Progress, console: Console) -> None:
    """Write the status `finished`, and print how the run ended."""
    early, warning = None, nonfinite_validation(progress)
    if progress.step < run.plan.total and run.recipe.early_stop:
        early = f"validation has not improved for {run.recipe.early_stop.patience} (early_stop.patience)"
        console.print(f"training ends after step {progress.step} of {run.plan.total}: {early}")
    if warning:
        console.print(f"warning: {warning}")
    folder.write_status("finished", progress.step, "; ".join(filter(None, [early, warning])) or None)
    console.print(f"finished: {describe_end(progress, run.val.labels)}; the run is in {folder.path}")
