"""A training run: built from the recipe, started or resumed, and trained to the end."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from seresnext.data.shards.remote import is_remote
from seresnext.distributed import World, launcher_id
from seresnext.metrics.console import Console
from seresnext.process.stop_request import StopRequest
from seresnext.recipe.load import to_values
from seresnext.recipe.schema import Recipe
from seresnext.recipe.show import to_yaml
from seresnext.run.assemble import Run
from seresnext.run.environment import compare_environments
from seresnext.run.folder import RunFolder, check_output
from seresnext.run.resume import (
    LoadedCheckpoint,
    changes_validation,
    check_compatible,
    find_checkpoint,
    keep_first_settings,
    previous_recipe,
    restored_progress,
    rewind_folder,
)
from seresnext.training.nonfinite import nonfinite_validation
from seresnext.training.plan import Progress


def train(
    recipe: Recipe,
    world: World,
    stop: StopRequest,
    *,
    output: Path,
    resume: str,
    allow_changed: Collection[str],
) -> None:
    """Train by a recipe in a run folder, from the last checkpoint if there is one, to the end or a stop request.

    Raises a Failure for a problem that the user has to fix. `status.json` in the folder states how the run ended.
    """
    world.set_timeout(recipe.runtime.collective_timeout)
    with world.agreeing():
        check_output(output, _data_folders(recipe))
    folder = RunFolder(output, world)
    with world.agreeing():
        notice = folder.open()
    stop.defer()
    console = Console(enabled=world.is_first, log=output / "log.txt")
    if notice:
        console.print(f"warning: {notice}")
    last_step = folder.status().get("step")
    progress = Progress(step=last_step if type(last_step) is int else 0)  # for the status, until the run is loaded
    with folder.tracking_status(console, lambda: progress.step):
        run, checkpoint, progress = _begin(recipe, world, folder, console, resume, allow_changed)
        if run.plan.is_complete(progress):
            early = _finish(run, folder, progress)
            why = f" ({early})" if early else ""
            console.print(f"{output} is finished: {progress.step} steps{why}, {_best(run, progress)}; nothing to do")
            return
        trainer = run.trainer(folder, checkpoint, progress, stop)
        console.print(run.introduction())
        if checkpoint:
            console.print(f"resuming from {checkpoint.path}, after step {progress.step} of {run.plan.total}")
        saved_step = progress.step if checkpoint else None
        folder.update_status(step=progress.step, saved_step=saved_step, total_steps=run.plan.total, best=progress.best)
        if trainer.fit():
            early = _finish(run, folder, progress)
            if early:
                console.print(f"training ends after step {progress.step} of {run.plan.total}: {early}")
            if warning := nonfinite_validation(progress):
                console.print(f"warning: {warning}")
            console.print(f"finished: {_best(run, progress)}; the run is in {output}")
        else:
            signals = _signals_in_words(world.gather(stop.signal))
            folder.write_status("preempted", progress.step, f"stopped by {signals}")
            console.print(
                f"stopped after step {progress.step} of {run.plan.total} by {signals}, and saved; the same command "
                "resumes the run"
            )


def _begin(
    recipe: Recipe, world: World, folder: RunFolder, console: Console, resume: str, allow_changed: Collection[str]
) -> tuple[Run, LoadedCheckpoint | None, Progress]:
    """Return the run, the checkpoint to resume from and the progress, and make the folder agree with the checkpoint.

    All checks that can refuse a start come first. Until all checks have passed, only status and log of an earlier run
    in the folder change.
    """
    launchers = world.gather(launcher_id())
    restarted = world.broadcast(folder.is_restart(launchers))
    checkpoint = find_checkpoint(folder.checkpoints, resume, world, console.print, restarted=restarted)
    previous = previous_recipe(checkpoint.metadata) if checkpoint else None
    recipe, notices = keep_first_settings(recipe, previous, allow_changed)
    run = Run(recipe, previous, world, console)
    starts_over = resume == "never" and not restarted
    progress, changes = Progress(), []
    with world.agreeing():
        if checkpoint:
            progress = restored_progress(checkpoint)
            changes = check_compatible(checkpoint, run.recipe, run.dataset, allow_changed)
            run.check_fits(checkpoint)
        folder.check_writable(moves_files=starts_over)
    folder.accept()
    with world.agreeing():
        folder.remove_temporary()
        if starts_over:
            folder.set_aside()
    if checkpoint:
        for line in [*notices, *(f"changed on resume: {change}" for change in changes)]:
            console.print(line)
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
            folder.write_recipe(to_yaml(to_values(run.recipe)))
            folder.write_environment({**run.environment, "launch": launchers})
    return run, checkpoint, progress


def _data_folders(recipe: Recipe) -> list[Path]:
    """Return the folders of this machine that hold the images."""
    data = recipe.data
    if data.format == "synthetic" or is_remote(data.root):
        return []
    root = Path(data.root)
    return [root, root / data.train_split, root / data.val_split]


def _finish(run: Run, folder: RunFolder, progress: Progress) -> str | None:
    """Write the status `finished`. Return why the run ended before `length`, or None."""
    early, early_stop = None, run.recipe.early_stop
    if early_stop and progress.step < run.plan.total:
        early = f"validation has not improved for {early_stop.patience} (early_stop.patience)"
    folder.write_status(
        "finished", progress.step, "; ".join(filter(None, [early, nonfinite_validation(progress)])) or None
    )
    return early


def _best(run: Run, progress: Progress) -> str:
    best = progress.best
    if best is None:
        return "the best checkpoint is lost" if progress.evaluated else "not validated"
    return (
        f"best top-1 {best['top1']:.2f} % after step {best['step']} ({best['weights']} weights); the largest class is "
        f"{run.largest_class:.1f} % of the validation images"
    )


def _signals_in_words(signals: list[str | None]) -> str:
    """Return the signals that the ranks received, in words."""
    if len(set(signals)) == 1:
        return str(signals[0])
    return ", ".join(f"{name} to rank {rank}" for rank, name in enumerate(signals) if name)
