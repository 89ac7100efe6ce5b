"""Draw the loss and accuracy curves of a run as one picture.

    python scripts/plot_run.py RUN_FOLDER [--output RUN_FOLDER/curves.png]

Reads `metrics.jsonl`, so it works while the run goes on. Needs matplotlib (the `demo` extra).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import _python  # noqa: F401
import matplotlib as mpl

mpl.use("Agg")  # A picture needs no display.
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from seresnext.errors import DataError, UsageError, run_script

Curve = tuple[list[float], list[float]]  # epochs, values


def read_curves(metrics: Path) -> dict[str, Curve]:
    """The curves of a `metrics.jsonl`, by `<event>.<field>` such as `train.loss`.

    A last line that is still being written is left out. Raises DataError for a file that is missing or
    not JSON lines.
    """
    try:
        lines = metrics.read_text().split("\n")
    except OSError as error:
        raise DataError(f"{metrics}: {error.strerror}; give the folder of a run") from None
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    for number, line in enumerate(lines[:-1], 1):  # What follows the last line end is empty or half-written.
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{metrics}:{number} is not JSON: {error}") from None
        for field in ("loss", "top1", "top5", "lr"):
            if entry.get(field) is not None:  # A loss that is not finite is written as null.
                epochs, values = curves[f"{entry['event']}.{field}"]
                epochs.append(entry["epoch"])
                values.append(entry[field])
    return curves


def draw(curves: dict[str, Curve], title: str, output: Path) -> None:
    """Write a PNG: loss on the left with the learning rate in the background, accuracy on the right."""
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    _plot(loss, curves, {"train.loss": "training", "validate.loss": "validation"})
    loss.set(title="loss", xlabel="epoch", ylim=(0, None))
    if "train.lr" in curves:
        rate = loss.twinx()
        rate.plot(*curves["train.lr"], color="0.8", linestyle=":", label="learning rate")
        rate.set(ylabel="learning rate", ylim=(0, None))
    _plot(accuracy, curves, {"validate.top1": "top-1", "validate.top5": "top-5"})
    accuracy.set(title="validation accuracy, %", xlabel="epoch", ylim=(0, 101))
    figure.suptitle(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    plt.close(figure)


def _plot(axes: Axes, curves: dict[str, Curve], labels: dict[str, str]) -> None:
    for name, label in labels.items():
        if name in curves:
            epochs, values = curves[name]
            suffix = f" {values[-1]:.2f}" if name.startswith("validate") else ""
            axes.plot(epochs, values, label=label + suffix, marker="." if len(epochs) < 60 else None)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the loss and accuracy curves of a run.")
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="default: curves.png in the run folder")
    arguments = parser.parse_args()

    curves = read_curves(arguments.run / "metrics.jsonl")
    if not curves:
        raise UsageError(f"{arguments.run}: nothing has been logged yet; try again after the first log line")
    output = arguments.output or arguments.run / "curves.png"
    draw(curves, arguments.run.resolve().name, output)
    print(f"curves: {output}")


if __name__ == "__main__":
    run_script(main)
