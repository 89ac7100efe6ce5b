"""The check of a run, from the recipe to the table: data, recipe, devices, disk, time and price."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from seresnext.check.data import check_data
from seresnext.check.devices import check_devices
from seresnext.check.disk import check_disk, judge_time
from seresnext.check.findings import SECTIONS, Finding, judge, table
from seresnext.check.recipe import check_recipe
from seresnext.data import pipeline
from seresnext.data.readers import Reader
from seresnext.data.readers.imagenet import OFFICIAL_COUNTS
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import DataError, RecipeError
from seresnext.files import write_json
from seresnext.metrics.console import Console
from seresnext.recipe.check import check_lengths
from seresnext.recipe.schema import AUTO_CLASSES, Recipe
from seresnext.run.opening import StartProblem, find_start_problems
from seresnext.training.plan import build_plan


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
