"""Measure how much a paired experiment lowers the noise of a comparison, and print the table of docs/experiments.md.

    python scripts/paired.py --data data/digits --output DIR --change optimizer.lr=0.005 [--seeds 5] [--set KEY=VALUE]

Each seed has a run A, and a run B that is forked from a checkpoint of A with the change. A pair of one seed shares the
weights at the fork, the order, the crops and the dropout. An unpaired comparison takes A of one seed and B of the next
seed. A run that is finished in DIR is not trained again.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import _python  # noqa: F401
from experiment import ROOT, watch

from seresnext.arguments import path_argument
from seresnext.checkpoint import store
from seresnext.metrics.status import read_status
from seresnext.process.exit import run_script

MEASURES = {"top-1, points": "top1", "validation loss": "loss"}


def main() -> None:
    """Parse the command line, train the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits", help="default: digits")
    parser.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--output", type=path_argument, required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--change", required=True, metavar="KEY=VALUE", help="the change that B gets at the fork")
    parser.add_argument("--fork", default="4ep", metavar="DURATION", help="length of A before the fork (default: 4ep)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of A and B")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    options = parser.parse_args()
    runs = [train_pair(seed, options) for seed in range(options.seeds)]
    print(table(runs))


def train_pair(seed: int, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Train A and B of a seed, unless both are finished. Return the last validations."""
    first, second = (options.output / f"{seed}-{name}" for name in "AB")
    settings = [f"runtime.seed={seed}", f"checkpoint.keep_every={options.fork}", f"checkpoint.every={options.fork}"]
    common = [sys.executable, str(ROOT / "train.py"), "--recipe", options.recipe, "--data", str(options.data)]
    common += [word for setting in [*options.set, *settings] for word in ("--set", setting)]
    _train(first, common, options.threads)
    fork = min(store.steps(first / "checkpoints").items())[1]
    key = options.change.partition("=")[0]
    changed = ["--resume", str(fork), "--set", options.change, "--allow-changed", key]
    _train(second, [*common, *changed], options.threads)
    return last_validation(first), last_validation(second)


def _train(output: Path, command: list[str], threads: int) -> None:
    if read_status(output).get("state") != "finished":
        watch(output.name, [*command, "--output", str(output)], threads)


def last_validation(run: Path) -> dict[str, float]:
    """Return the last validation of the trained weights."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "validate" and row["weights"] == "model"][-1]


def differences(runs: list[tuple[dict[str, float], dict[str, float]]], measure: str, apart: int) -> list[float]:
    """Return B minus A for each seed of A. `apart`: 0 for pairs of one seed, 1 for B of the next seed."""
    return [runs[(seed + apart) % len(runs)][1][measure] - first[measure] for seed, (first, _) in enumerate(runs)]


def table(runs: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    """Return the table as Markdown, with the differences in the order of the seeds."""
    lines = ["| B - A | seeds | mean | standard deviation | differences |", "|---|---|---|---|---|"]
    for title, measure in MEASURES.items():
        for name, apart in (("paired", 0), ("unpaired", 1)):
            found = differences(runs, measure, apart)
            listing = ", ".join(f"{one:+.3g}" for one in found)
            lines.append(f"| {title} | {name} | {mean(found):+.3g} | {stdev(found):.3g} | {listing} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
