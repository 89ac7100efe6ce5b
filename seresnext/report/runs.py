"""A table of the runs below a folder: state, steps, best validation, time, and the differences of their recipes."""

import math
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from seresnext.errors import DataError, RecipeError, printable
from seresnext.metrics.console import describe
from seresnext.metrics.sink import flatten
from seresnext.metrics.status import read_status
from seresnext.recipe.load import load_recipe, to_values

_MOST_KEYS = 8  # columns of keys in the table


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder, also those below earlier runs. Raises DataError if there are none."""
    found = sorted(Path(place) for place, _, files in os.walk(folder) if "status.json" in files)
    if not found:
        raise DataError(f"{folder} holds no runs; give a folder below which `seresnext train` wrote runs")
    return found


def describe_run(run: Path) -> dict[str, Any]:
    """Return the content of the files of a run. A value is None where a file is missing, damaged or not yet complete.

    `best` is the measure that chose the best, such as `macro F1 71.20 %`.
    `seconds` is the time from the last start of the run to the last change of its status.
    """
    status = read_status(run)
    best, seconds, recipe, measure, top1 = status.get("best") or {}, None, None, None, None
    with suppress(ArithmeticError, LookupError, TypeError, ValueError):
        top1 = best["top1"] if math.isfinite(best["top1"]) else None
        measure = describe(best, fields=(best.get("by", "top1"),)) or None
    with suppress(KeyError, TypeError, ValueError):
        started, updated = (datetime.fromisoformat(status[name]) for name in ("started", "updated"))
        seconds = (updated - started).total_seconds()
    with suppress(RecipeError):
        recipe = flatten(to_values(load_recipe(run / "recipe.yaml").recipe))
    return {
        "run": str(run),
        "state": _state(status),
        "seconds": seconds,
        "recipe": recipe,
        "best": measure,
        "top1": top1,
        "best_step": step if isinstance(step := best.get("step"), int) else None,
        "best_weights": best.get("weights"),
        **{name: status.get(name) for name in ("step", "total_steps", "updated", "reason")},
    }


def differences(runs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the recipe keys whose values differ between runs, with one value a run (None for a recipe without)."""
    recipes = [run["recipe"] for run in runs if run["recipe"]]
    return {
        key: [(run["recipe"] or {}).get(key) for run in runs]
        for key in dict.fromkeys(key for recipe in recipes for key in recipe)
        if len({repr(recipe.get(key)) for recipe in recipes}) > 1
    }


def print_runs(folder: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Print the table, the best run first. A column for each key that differs follows the columns of the results."""
    runs = sorted(runs, key=lambda run: (-(run["top1"] or 0), run["run"]))
    rows = [["run", "state", "step", "best", "at step", "time"]]
    for run in runs:
        name = os.path.relpath(run["run"], folder.parent if run["run"] == str(folder) else folder)
        best = "" if run["best"] is None else f"{run['best']}{' (ema)' * (run['best_weights'] == 'ema')}"
        steps = "" if run["step"] is None else f"{run['step']:,}"
        steps += "" if run["total_steps"] is None else f" of {run['total_steps']:,}"
        at = "" if run["best_step"] is None else f"{run['best_step']:,}"
        time = "" if run["seconds"] is None else str(timedelta(seconds=round(run["seconds"])))
        rows.append([printable(text, 40) for text in (name, run["state"], steps, best, at, time)])
    different = differences(runs)
    for key, values in list(different.items())[:_MOST_KEYS]:
        cells = ["" if value is None else printable(value, 24) for value in values]
        for row, cell in zip(rows, [key, *cells], strict=True):
            row.append(cell)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if more := list(different)[_MOST_KEYS:]:
        print(f"{len(more)} more keys differ: {printable(', '.join(more))}; --json writes all values")


def _state(status: dict[str, Any]) -> str:
    """Return the state. A run whose process on this machine is gone was killed."""
    is_here = status.get("state") == "running" and status.get("host") == socket.gethostname()
    return "killed" if is_here and not Path(f"/proc/{status.get('pid')}").exists() else str(status.get("state"))
