"""A training run: assembled from its recipe, started or resumed, and brought to an end that its status tells."""

from __future__ import annotations

import resource
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from seresnext.data.shards.remote import is_remote
from seresnext.distributed import World, launcher
from seresnext.errors import CheckpointError, DataError, Failure, UsageError
from seresnext.metrics.console import Console
from seresnext.metrics.speed import format_seconds
from seresnext.metrics.status import read_status, update_progress, write_status
from seresnext.process.stop_request import StopRequest
from seresnext.recipe.load import LoadedRecipe
from seresnext.recipe.schema import Recipe
from seresnext.recipe.show import to_yaml
from seresnext.run.assemble import Run
from seresnext.run.folder import RunFolder, check_output, compare_environments, resume_point
from seresnext.run.resume import (
    LoadedCheckpoint,
    check_compatible,
    find_checkpoint,
    keep_first_settings,
    previous_values,
    restored_progress,
    rewind_folder,
    validation_changes,
)
from seresnext.training.nonfinite import nonfinite_validation
from seresnext.training.plan import Progress


def train(
    loaded: LoadedRecipe,
    world: World,
    stop: StopRequest,
    *,
    output: Path,
    resume: str,
    allow_changed: Collection[str],
) -> None:
    """Train by a recipe in a run folder, from where it was left if it was, until its end or until asked to stop.

    Raises a Failure for what the user has to mend. Once training has begun, the folder's `status.json` tells how it
    ended.
    """
    world.set_timeout(loaded.recipe.runtime.collective_timeout)
    world.together(lambda: check_output(output, _data_folders(loaded.recipe)))
    folder = RunFolder(output, world)
    notice = world.together(lambda: folder.open())
    stop.defer()
    console = Console(enabled=world.is_first, log=output / "log.txt")
    if notice:
        console.line(f"warning: {notice}")
    before = folder.status().get("step")
    progress = Progress(step=before if type(before) is int else 0)  # Until it is known better.
    with _status(folder, world, console, lambda: progress.step):
        run, saved, progress = _begin(loaded, world, folder, console, resume, allow_changed)
        if run.is_complete(progress):
            early = run.early_end(progress)
            folder.write_status("finished", progress.step, _reason(early, progress))
            why = f" ({early})" if early else ""
            console.line(f"{output} is finished: {progress.step} steps{why}, {_best(progress, run)}; nothing to do")
            return
        trainer = run.trainer(folder, saved, progress, stop)
        console.line(run.introduction())
        if saved:
            console.line(f"going on from {saved.path}, after step {progress.step} of {run.plan.total}")
        if world.is_first:
            saved_step = progress.step if saved else None
            update_progress(
                output, step=progress.step, saved_step=saved_step, total_steps=run.plan.total, best=progress.best
            )
        if trainer.fit():
            early = run.early_end(progress)
            folder.write_status("finished", progress.step, _reason(early, progress))
            if early:
                console.line(f"training ends after step {progress.step} of {run.plan.total}: {early}")
            if doubt := nonfinite_validation(progress):
                console.line(f"warning: {doubt}")
            console.line(f"finished: {_best(progress, run)}; the run is in {output}")
        else:
            signals = _describe(world.gather(stop.signal))
            folder.write_status("preempted", progress.step, f"stopped by {signals}")
            console.line(
                f"stopped after step {progress.step} of {run.plan.total} by {signals}, and saved; the same command "
                "goes on from there"
            )


def _begin(
    loaded: LoadedRecipe,
    world: World,
    folder: RunFolder,
    console: Console,
    resume: str,
    allow_changed: Collection[str],
) -> tuple[Run, LoadedCheckpoint | None, Progress]:
    """Return the run, the checkpoint to resume from and the progress, and make the folder agree with the checkpoint.

    All checks that can refuse a start come first. Until all checks have passed, only status and log of an earlier run
    in the folder change.
    """
    launchers = world.gather(launcher())
    restarted = world.broadcast(folder.is_restart(launchers))
    saved = find_checkpoint(folder.checkpoints, resume, world, console.line, restarted=restarted)
    progress = world.together(lambda: restored_progress(saved)) if saved else Progress()
    settled = previous_values(saved.facts) if saved else {}
    values, notices = keep_first_settings(loaded.values, settled, allow_changed)
    run = Run(values, settled, world, console, loaded.meant)
    changes: list[str] = []
    if saved:
        changes = world.together(lambda: _accepted_changes(run, saved, allow_changed))
        world.together(lambda: run.check_fits(saved))
    starts_over = resume == "never" and not restarted
    world.together(lambda: folder.check_writable(moves_files=starts_over))
    folder.accept()
    world.together(lambda: folder.sweep())
    if saved:
        for line in [*notices, *(f"changed on resume: {change}" for change in changes)]:
            console.line(line)
        if world.is_first and (difference := compare_environments(saved.facts.environment, run.environment)):
            console.line(difference)
        if saved.facts.dataset.get("val") is None:
            console.line(
                f"{saved.path} has no record of the validation images, so the validation images are not compared"
            )
        anew = validation_changes(saved.facts, run.dataset, changes)
        progress.best = rewind_folder(saved, folder.checkpoints, world, console.line, anew)
        if anew and progress.evaluated == progress.step > 0:
            progress.evaluated -= 1  # Validation after this step runs again, in the new way.
    elif starts_over:
        # Not before: a recipe or data that cannot be used must not move a good run.
        world.together(lambda: folder.set_aside())
    if not run.is_complete(progress):
        # Before the first pass, which may be compiled for minutes: a full disk shows now.
        world.together(lambda: folder.write_recipe(to_yaml(run.values)))
        world.together(lambda: folder.write_environment({**run.environment, "launch": launchers}))
    return run, saved, progress


def _data_folders(recipe: Recipe) -> list[Path]:
    """The folders of this machine that the images come from."""
    data = recipe.data
    if data.format == "synthetic" or is_remote(data.root):
        return []
    root = Path(data.root)
    return [root, root / data.train_split, root / data.val_split]


def dry_run(loaded: LoadedRecipe, world: World, stop: StopRequest) -> None:
    """Build everything, take two steps, validate one batch, and print time, memory and an estimate for the whole run.

    Writes nothing.
    """
    console = Console(enabled=world.is_first)
    run = Run(loaded.values, {}, world, console, loaded.meant)
    console.line(run.introduction())
    timings = run.trainer(None, None, Progress(), stop).dry_run()
    total = timings.step_seconds * run.plan.total + timings.validation_seconds * run.plan.evaluations
    console.line(
        f"one step takes {timings.step_seconds:.3g} s "
        f"({run.plan.global_size / timings.step_seconds:.4g} images/s), one validation about "
        f"{timings.validation_seconds:.3g} s\n"
        f"peak memory of rank 0: {_peak_memory(world)}\n"
        f"estimated time for the whole run: {format_seconds(total)} ({run.plan.total} steps, "
        f"{run.plan.evaluations} validations), without checkpoints\n"
        "nothing was written"
    )


@contextmanager
def _status(folder: RunFolder, world: World, console: Console, step: Callable[[], int]) -> Iterator[None]:
    """Keep `status.json` true while the block trains: running at first, failed with the reason when it raises.

    The status changes as soon as the folder is locked: a reader must not take the end of an earlier start for the end
    of this start. The log gets the reason, too. A refused start leaves no folder if no run was there before.
    """

    def fail(reason: str) -> None:
        # Any rank may be the one that knows why; the others only see it gone, and must not write over the reason. And
        # a run that is saved or done is no less so because something goes wrong after that.
        if read_status(folder.path).get("state", "running") == "running":
            write_status(folder.path, world, "failed", step(), reason)

    def lose(reason: str) -> None:
        console.log(f"error: {reason}")
        fail(f"rank {world.rank}: {reason}")

    folder.write_status("running", step())
    world.on_peer_lost(lose, lambda: resume_point(folder.path))
    try:
        world.broadcast(None)  # Nobody goes on before that is written, or it would be written over a failure.
        with world.translate_errors():
            yield
            world.broadcast(None)  # Nobody leaves before the end is written: others can then still write a failure.
    except BaseException as error:
        reason, is_shared = f"{type(error).__name__}: {error}", world.size == 1
        if isinstance(error, Failure):
            reason, is_shared = str(error), error.is_shared or is_shared
            error.is_recorded = True
        # Rank 0 writes a failure that all ranks share, and the message blames no rank.
        if world.is_first or not is_shared:
            is_refusal = isinstance(error, UsageError | DataError | CheckpointError)
            if not (is_refusal and folder.discard()):
                console.log(f"error: {reason}")
                fail(reason if is_shared else f"rank {world.rank}: {reason}")
        raise


def _describe(signals: list[str | None]) -> str:
    """The signals that the ranks got, in words."""
    if len(set(signals)) == 1:
        return str(signals[0])
    return ", ".join(f"{name} to rank {rank}" for rank, name in enumerate(signals) if name)


def _peak_memory(world: World) -> str:
    if world.device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(world.device) / 2**30:.2f} GiB on the GPU"
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{kibibytes / 2**20:.2f} GiB"


def _accepted_changes(run: Run, saved: LoadedCheckpoint, allowed: Collection[str]) -> list[str]:
    return check_compatible(saved.facts, run.values, run.dataset, allowed, saved.path)


def _reason(early: str | None, progress: Progress) -> str | None:
    """Return the reason for `status.json` of a finished run."""
    return "; ".join(filter(None, [early, nonfinite_validation(progress)])) or None


def _best(progress: Progress, run: Run) -> str:
    best = progress.best
    if best is None:
        return "its best checkpoint is lost" if progress.evaluated else "not validated"
    return (
        f"best top-1 {best['top1']:.2f} % after step {best['step']} ({best['weights']} weights); the largest class is "
        f"{run.largest_class:.1f} % of the validation images"
    )
