"""The loss and accuracy curves of a run as one picture.

The curves come from `metrics.jsonl`, also while the run is training, and the label smoothing from `recipe.yaml`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from seresnext.errors import DataError, RecipeError, UsageError
from seresnext.process.packages import extra
from seresnext.recipe.load import load_recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[list[float], list[float]]  # epochs, values
_FIELDS = ("loss", "top1", "top5", "lr")
_COLOURS = {"train": "tab:blue", "validate": "tab:orange", "validate_ema": "tab:green"}


def read_curves(metrics: Path) -> dict[str, Curve]:
    """Return the curves of a `metrics.jsonl` by `<event>.<field>`, such as `train.loss` and `validate_ema.top1`.

    A partial last line, which a run may still be writing, is ignored. Raises DataError for a file that is missing or
    has other lines than events.
    """
    if metrics.exists() and not metrics.is_file():
        raise DataError(f"{metrics} is not a regular file; give the folder of a run")
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    try:
        with metrics.open("rb") as file:
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


def read_smoothing(recipe: Path) -> float:
    """Return the label smoothing of the training loss, or 0 if the recipe is missing or cannot be read."""
    try:
        return load_recipe(str(recipe)).recipe.loss.label_smoothing if recipe.is_file() else 0.0
    except RecipeError:
        return 0.0


def draw(curves: dict[str, Curve], title: str, output: Path, smoothing: float = 0.0) -> None:
    """Write a PNG: loss on the left with the learning rate in the background, accuracy on the right."""
    with extra("demo"):
        import matplotlib as mpl
        import matplotlib.pyplot as plt

    mpl.use("Agg")  # No display is needed.
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    validations = sorted({name.partition(".")[0] for name in curves if name.startswith("validate")})
    has_one = validations == ["validate"]
    weights = {name: "" if has_one else f" ({name.partition('_')[2] or 'model'})" for name in validations}

    _plot(loss, curves, "train.loss", f"training (label smoothing {smoothing:g})" if smoothing else "training")
    for name in validations:
        _plot(loss, curves, f"{name}.loss", f"validation{weights[name]}")
    loss.set(title="loss", xlabel="epoch", ylim=(0, None))
    if "train.lr" in curves:
        rate = loss.twinx()
        rate.plot(*curves["train.lr"], color="0.8", linestyle=":")
        rate.set(ylabel="learning rate (dotted)", ylim=(0, None))

    for name in validations:
        _plot(accuracy, curves, f"{name}.top1", f"top-1{weights[name]}")
        _plot(accuracy, curves, f"{name}.top5", f"top-5{weights[name]}", linestyle="--")
    accuracy.set(title="validation accuracy, %", xlabel="epoch", ylim=(0, 101))
    if not accuracy.lines:
        accuracy.text(0.5, 0.5, "not validated yet", transform=accuracy.transAxes, ha="center", color="0.4")
        accuracy.set(xticks=[], yticks=[])
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        if axes.lines:  # below the axes, so that the legend covers no curve
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    figure.suptitle(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    plt.close(figure)


def _plot(axes: Axes, curves: dict[str, Curve], name: str, label: str, linestyle: str = "-") -> None:
    if name not in curves:
        return
    epochs, values = curves[name]
    event = name.partition(".")[0]
    last = f" {values[-1]:.2f}" if event != "train" else ""
    marker = "." if len(epochs) < 60 else None
    axes.plot(epochs, values, label=label + last, marker=marker, color=_COLOURS.get(event), linestyle=linestyle)


def plot_run(run: Path, output: Path | None) -> None:
    """Write the curves of a run folder as a PNG, by default `curves.png` in the folder."""
    curves = read_curves(run / "metrics.jsonl")
    if not curves:
        raise UsageError(f"{run}: nothing has been logged yet; try again after the first log line")
    output = output or run / "curves.png"
    draw(curves, run.resolve().name, output, read_smoothing(run / "recipe.yaml"))
    print(f"curves: {output}")
