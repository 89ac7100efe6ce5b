"""The loss and accuracy curves of one run or several runs as one picture.

The curves come from `metrics.jsonl`, also while the run is training, and the label smoothing from `recipe.yaml`.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seresnext.errors import DataError, RecipeError, UsageError, printable
from seresnext.files import new_file, open_regular
from seresnext.process.packages import extra
from seresnext.progress import warn
from seresnext.recipe.load import load_recipe

Curve = tuple[list[float], list[float]]  # epochs, values
Line = tuple[Curve, dict[str, str]]  # a curve of a panel, and the options of matplotlib: label, color, linestyle
_FIELDS = ("loss", "top1", "top5", "balanced_accuracy", "macro_f1", "lr")
MEASURES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
"""The measures of `evaluation.best_by` other than top-1 and the loss, and their names."""
KINDS = {"train": "training", "validate": "validation, model", "validate_ema": "validation, average (EMA)"}
"""The curves of a measure, and their names."""
_COLOURS = {"train": "tab:blue", "validate": "tab:orange", "validate_ema": "tab:green"}
_COLUMNS, _WIDTH, _HEIGHT = 3, 7.0, 3.6  # panels of a row; inches of a panel


def read_curves(metrics: Path) -> dict[str, Curve]:
    """Return the curves of a `metrics.jsonl` by `<event>.<field>`, such as `train.loss` and `validate_ema.top1`.

    A partial last line, which a run may still be writing, is ignored. Raises DataError for a file that is missing or
    has other lines than events.
    """
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    try:
        with os.fdopen(open_regular(metrics), "rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    _add(curves, line, f"{metrics}:{number}")
    except OSError as error:
        raise DataError(f"{metrics}: {error.strerror}; give the folder of a run") from None
    return curves


def _add(curves: dict[str, Curve], line: bytes, place: str) -> None:
    try:
        entry = json.loads(line)
        weights = entry.get("weights", "model")
        event = entry["event"] if weights == "model" else f"{entry['event']}_{weights}"
        # null stands for a loss that is not finite.
        found = {field: float(entry[field]) for field in _FIELDS if entry.get(field) is not None}
        epoch = float(entry["epoch"])
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise DataError(f"{place} is not an event of a run; remove the line") from None
    for field, value in found.items():
        epochs, values = curves[f"{event}.{field}"]
        epochs.append(epoch)
        values.append(value)


def read_run(name: str, folder: Path, curves: dict[str, Curve]) -> Run:
    """Return a run to draw. If the recipe is missing or cannot be read, the defaults of `Run` hold."""
    try:
        recipe = load_recipe(str(folder / "recipe.yaml")).recipe
    except RecipeError:
        return Run(name, curves)
    return Run(name, curves, recipe.loss.label_smoothing, recipe.evaluation.best_by)


@dataclass(frozen=True)
class Run:
    """A run to draw. `smoothing` is the label smoothing of the training loss. `best_by` chooses the best."""

    name: str
    curves: dict[str, Curve]
    smoothing: float = 0.0
    best_by: str = "top1"


def panels_of(runs: Sequence[Run]) -> dict[str, list[Line]]:
    """Return the panels of runs by title, without empty panels.

    One run: training, model and average together. Several runs: a panel for each of these, with a line a run.
    """
    is_alone, panels = len(runs) == 1, defaultdict(list)
    rows = [("loss", "loss", "-"), ("top1", "top-1", "-"), ("top5", "top-5", ":")][: 2 + is_alone]
    rows += [(field, name, "--") for field, name in MEASURES.items() if field in {run.best_by for run in runs}]
    for field, name, style in rows:
        for kind, text in KINDS.items():
            for number, run in enumerate(runs):
                if not (curve := run.curves.get(f"{kind}.{field}")):
                    continue
                is_smoothed = run.smoothing and field == "loss" and kind == "train"
                note = f" (label smoothing {run.smoothing:g})" if is_smoothed else ""
                label = (text if field == "loss" else f"{text}, {name}") if is_alone else run.name
                title = ("loss" if field == "loss" else "accuracy, %") if is_alone else f"{name}: {text}"
                options = {"label": f"{label}{note} {curve[1][-1]:.2f}", "linestyle": style}
                panels[title].append((curve, {**options, "color": _COLOURS[kind] if is_alone else f"C{number}"}))
    if is_alone and (rates := runs[0].curves.get("train.lr")):
        panels["learning rate"] = [(rates, {"color": "tab:gray"})]
    return panels


def draw(panels: Mapping[str, Sequence[Line]], title: str, output: Path) -> None:
    """Write a PNG of panels, each with its legend on the right. Raises the errors of new_file."""
    with extra("demo"):
        import matplotlib as mpl
        import matplotlib.pyplot as plt

    mpl.use("Agg")  # No display is needed.
    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    size = (columns * _WIDTH, rows * _HEIGHT)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (name, lines) in zip(grid.flat, panels.items(), strict=False):
        for (epochs, values), options in lines:
            axes.plot(epochs, values, marker="." if len(epochs) < 60 else None, **options)
        axes.set(title=name, xlabel="epoch", ylim=(0, None if name.startswith(("loss", "learning")) else 101))
        axes.grid(alpha=0.3)
        if any("label" in options for _, options in lines):  # outside of the axes: the legend covers no curve
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.suptitle(title)
    with new_file(output) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def plot_runs(folders: Sequence[Path], output: Path | None) -> None:
    """Write the curves of run folders as a PNG: `curves.png` in the folder of one run, or in the current folder.

    A run without a line yet is left out with a warning.
    """
    names = [folder.resolve().name for folder in folders]
    runs = []
    for folder, name in zip(folders, names, strict=True):
        if curves := read_curves(folder / "metrics.jsonl"):
            # Folders of one name are named by their paths.
            label = name if names.count(name) == 1 else str(folder)
            runs.append(read_run(printable(label, 40), folder, curves))
        elif len(folders) > 1:
            warn(f"{folder}: nothing has been logged yet; the picture leaves the run out")
    if not runs:
        raise UsageError(f"{folders[0]}: nothing has been logged yet; try again after the first log line")
    output = output or (folders[0] / "curves.png" if len(folders) == 1 else Path("curves.png"))
    draw(panels_of(runs), runs[0].name if len(runs) == 1 else f"{len(runs)} runs", output)
    print(f"curves: {output}")
