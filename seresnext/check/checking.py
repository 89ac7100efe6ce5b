"""The check of a run, from the recipe to the table: data, recipe, devices, disk, time and price."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from seresnext.check.data import check_data
from seresnext.check.devices import Speeds, check_devices
from seresnext.check.findings import SECTIONS, Finding, judge, table
from seresnext.check.recipe import check_recipe
from seresnext.data import pipeline
from seresnext.data.readers import Reader
from seresnext.data.readers.imagenet import OFFICIAL_COUNTS
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import DataError, RecipeError, shown_path
from seresnext.files import write_json
from seresnext.metrics.console import Console
from seresnext.recipe import AUTO_CLASSES, Recipe, check_lengths
from seresnext.run.dry_run import Spread, duration, number
from seresnext.run.opening import StartProblem, find_start_problems
from seresnext.training.plan import Plan, build_plan


def check(
    recipe: Recipe,
    world: World,
    output: Path,
    has_data: bool,
    *,
    full: bool = False,
    strict: bool = False,
    price: float | None = None,
    json: Path | None = None,
) -> None:
    """Check a run into the folder `output`, on all ranks, and print the table on rank 0. Raises the first failure.

    Without `has_data`, synthetic photographs stand for the images. `full`, `strict`, `price` (of an hour) and `json`
    are the options of the command.
    """
    started, console, findings = time.monotonic(), Console(enabled=world.is_first), []

    def report(section: str, found: Iterable[Finding]) -> None:
        own = [finding for finding in found if finding.section == section]
        findings.extend(own)
        if own:
            console.print(table(section, own))

    is_real = has_data and recipe.data.format != "synthetic"
    recipe, readers, found = _open(recipe, world, is_real)
    report("data", [*found, *check_data(recipe, readers, world, full=full)])
    train = readers.get("training") or SyntheticReader(OFFICIAL_COUNTS["train"], recipe.model.num_classes)
    num_val = len(readers["validation"]) if "validation" in readers else OFFICIAL_COUNTS["val"]
    plan, steps = None, len(train) // recipe.batch.global_size  # steps of an epoch; 0 is a problem in `found`
    if steps and (len(readers) == 2 or not is_real):
        with suppress(RecipeError):  # Lengths that do not fit are a problem in `found`, too.
            check_lengths(recipe, steps)
            plan = build_plan(recipe, steps)
    report("recipe", [*found, *(check_recipe(recipe, plan) if plan else ())])
    found, speeds = check_devices(recipe, train, world)
    report("devices", found)
    if plan and speeds:
        report("disk", world.broadcast(world.is_first and check_disk(recipe, plan, speeds, output)))
        report("run", [judge_time(plan, speeds, num_val, price)])
    seconds = time.monotonic() - started
    counts = {name: sum(each.verdict == name for each in findings) for name in ("failure", "warning", "ok")}
    console.print(f"{', '.join(f'{count} {name}' for name, count in counts.items())}, in {seconds:.0f} s")
    failing = ("failure", "warning") if strict else ("failure",)
    bad = world.broadcast([finding for finding in findings if finding.verdict in failing])
    failed = None
    if bad:
        names = f"problem{'s' * (len(bad) > 1)} ({', '.join(f'{each.section}: {each.name}' for each in bad)})"
        failed = SECTIONS[bad[0].section](f"the check found {len(bad)} {names}; apply the fixes above")
        failed.is_shared = True
    if json and world.is_first:
        result = {"exit_code": failed.exit_code if failed else 0, **counts, "seconds": seconds}
        write_json(json, {**result, "world_size": world.size, "findings": [finding._asdict() for finding in findings]})
    if failed:
        raise failed


def _open(recipe: Recipe, world: World, is_real: bool) -> tuple[Recipe, dict[str, Reader], list[Finding]]:
    """Return the recipe with the number of classes, the splits that all ranks can open, and the findings about a start.

    No split is opened unless `is_real`.
    """
    if not is_real:
        if recipe.model.num_classes == AUTO_CLASSES:
            recipe = recipe.changed(model={"num_classes": 1000})
        synthetic = recipe.changed(data={"format": "synthetic", "synthetic_images": OFFICIAL_COUNTS["train"]})
        _, _, problems = find_start_problems(synthetic, None, world, lambda text: None)
        measured = "not checked: no --data; synthetic photographs with ImageNet's sizes stand for the images"
        return recipe, {}, [judge("data", "images", measured), *map(_from_problem, problems)]
    warnings: list[str] = []
    recipe, readers, problems = find_start_problems(recipe, None, world, warnings.append, looks=False)
    opened = world.gather(list(readers))
    readers = {name: reader for name, reader in readers.items() if all(name in names for names in opened)}
    try:
        with world.agreeing():
            pipeline.check_same_data(world, *readers.values())
    except DataError as error:
        readers, problems = {}, [*problems, StartProblem(DataError, str(error))]
    notes = [text.removeprefix("warning: ") for text in world.broadcast(warnings)]
    found = [judge("data", "files", note, "see docs/data.md, Image folders") for note in notes]
    return recipe, readers, [*found, *map(_from_problem, problems)]


def _from_problem(problem: StartProblem) -> Finding:
    """Return the finding about a problem that prevents the start. The message ends with the fix."""
    section = "data" if issubclass(problem.error, DataError) else "recipe"
    measured, _, fix = problem.text.rpartition("; ")
    if not measured or "\n" in fix:
        measured, fix = problem.text, "apply the fix of each line"
    return judge(section, "start", measured, fix, verdict="failure")


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
