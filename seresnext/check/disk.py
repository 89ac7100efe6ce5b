"""The disk of the run folder, and time and price of the whole run."""

import math
import os
import shutil
import tempfile
import time
from pathlib import Path

from seresnext.check.devices import Speeds
from seresnext.check.findings import Finding, judge
from seresnext.printable import shown_path
from seresnext.recipe.schema import Recipe
from seresnext.run.estimate import Spread, duration, number
from seresnext.training.plan import Plan

_WRITES, _WRITTEN, _SECONDS = 5, 64 << 20, 10.0
_FORWARD = 1 / 3  # The share of a step that its forward pass takes: the backward pass costs twice as much.


def check_disk(recipe: Recipe, plan: Plan, speeds: Speeds, output: Path) -> list[Finding]:
    """Return the findings about the file system of the run folder `output`, which may not exist yet."""
    folder = next(each for each in (output.absolute(), *output.absolute().parents) if each.exists())
    every = min(plan.save_every, plan.evaluate_every, plan.total)  # A validation saves, too.
    try:
        free, rate = shutil.disk_usage(folder).free, measure_writes(folder)
    except OSError as error:
        problem = f"{shown_path(folder)} cannot be written: {error.strerror}"
        return [judge("disk", "writing", problem, "choose another folder with --output", verdict="failure")]
    return [
        judge_space(recipe, plan, every, speeds.checkpoint_bytes, free, folder),
        judge_writes(rate, speeds.checkpoint_bytes, every * step_seconds(plan, speeds).median),
    ]


def judge_space(recipe: Recipe, plan: Plan, every: int, size: int, free: int, folder: Path) -> Finding:
    """Return the finding about checkpoints of `size` bytes each `every` steps, and the `free` bytes of a folder."""
    kept = plan.total // plan.keep_every if plan.keep_every else 0
    count = min(recipe.checkpoint.keep, math.ceil(plan.total / every)) + kept + 2  # `best`, and one in writing
    needed = count * size
    measured = (
        f"{free / 1e9:,.1f} GB free in {shown_path(folder)}; {count:,} checkpoints of {size / 1e6:,.0f} MB take "
        f"{needed / 1e9:,.1f} GB"
    )
    fix = "make room, choose another folder with --output, or lower checkpoint.keep" * (free < 2 * needed)
    verdict = "failure" if free < needed else "warning"
    return judge("disk", "space", measured, fix, verdict=verdict, free_bytes=free, needed_bytes=needed)


def measure_writes(folder: Path) -> Spread:
    """Return the bytes/s of synced writes in a folder. The temporary file never stays. Raises OSError."""
    content, rates, began = os.urandom(1 << 20) * (_WRITTEN >> 20), [], time.monotonic()
    with tempfile.TemporaryFile(dir=folder) as file:
        while len(rates) < _WRITES and (not rates or time.monotonic() - began < _SECONDS):
            started = time.monotonic()
            file.seek(0)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            rates.append(len(content) / (time.monotonic() - started))
    return Spread.of(rates)


def judge_writes(rate: Spread, size: int, interval: float) -> Finding:
    """Return the finding about a checkpoint of `size` bytes every `interval` seconds."""
    seconds = size / rate.median
    measured = (
        f"{rate.times(1e-6).text()} MB/s with fsync: {number(seconds)} s a checkpoint, every {duration(interval)}"
    )
    fix = "raise checkpoint.every and evaluation.every, or choose a faster disk with --output: training waits"
    return judge("disk", "writing", measured, fix * (seconds > interval), **rate._asdict(), checkpoint_seconds=seconds)


def step_seconds(plan: Plan, speeds: Speeds) -> Spread:
    """Return the seconds of a step, or of the loader if the loader takes longer."""
    wait = speeds.loader.rate(plan.global_size) if speeds.loader else speeds.step
    return Spread(*map(max, speeds.step, wait))


def judge_time(plan: Plan, speeds: Speeds, num_val: int, price: float | None) -> Finding:
    """Return the finding about time and price of a run with `num_val` validation images. `price`: of an hour."""
    step = step_seconds(plan, speeds)
    waited = 1 / speeds.loader.median if speeds.loader else 0.0
    validation = num_val * max(_FORWARD * speeds.step.median / plan.global_size, waited)
    total = step.times(plan.total, validation * plan.evaluations)
    measured = (
        f"{total.text(duration)}: {plan.total:,} steps of {number(step.median)} s, {plan.evaluations:,} validations of "
        f"about {number(validation)} s"
    )
    values = total._asdict()
    if price:
        cost = total.times(price / 3600)
        measured += f"\nprice {cost.text('{:,.2f}'.format)}, at {price:g} an hour"
        values["price"] = cost.median
    return judge("run", "time", measured, **values)
