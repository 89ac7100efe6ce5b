"""Train the small experiments of the documents one after the other, and print accuracies and times.

    python scripts/experiment.py plain best --data cifar10-small --output DIR [--seeds 0 1] [--timm TRAIN_PY]

DIR gets a run folder for each name and seed, and `results.json` with all finished runs. A run in `results.json` is not
trained again. `--timm` is the file train.py of timm's repository, which the package lacks; it trains first, on the same
images. A time runs from the start of a process to the printed line of a validation.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _python  # noqa: F401

from seresnext.arguments import path_argument
from seresnext.errors import Failure, UsageError
from seresnext.process.exit import run_script

ROOT = Path(__file__).parents[1]

# The settings of TIMM below, as settings on top of the recipe `cifar10`. One process has two logical replicas, and
# BatchNorm sees the 32 images of a replica.
PLAIN = (
    "batch={global_size: 64, micro_size: 32}",
    "optimizer={lr: 0.05, weight_decay: 1e-4}",
    "augment={crop_scale: [0.35, 1.0], flip: 0.5}",
    "loss.label_smoothing=0.1",
    "ema=null",
)
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "plain": PLAIN,
    "large_crops": (*PLAIN, "augment.crop_scale=[0.7, 1.0]", "ema={decay: 0.99}"),
    "small_batch": (*PLAIN, "batch={global_size: 32, micro_size: 16}", "optimizer.lr=0.02", "ema={decay: 0.995}"),
    "clipping": (*PLAIN, "batch.micro_size=64", "optimizer.clip_norm=1.0", "ema={decay: 0.99}"),
    "large_steps": (
        *PLAIN,
        "batch={global_size: 16, micro_size: 16}",
        "optimizer={lr: 0.02, nesterov: true, decay_norm_and_bias: false, weight_decay: 5e-4}",
        "model.zero_init_last=true",
        "augment.crop_scale=[0.5, 1.0]",
        "ema={decay: 0.998}",
    ),
    "batch_16": (
        *PLAIN,
        "batch={global_size: 16, micro_size: 16}",
        "optimizer={lr: 0.01, nesterov: true}",
        "augment={crop_scale: [0.8, 1.0], crop_ratio: [0.9, 1.1]}",
        "ema={decay: 0.998}",
    ),
    "batch_32": (
        *PLAIN,
        "batch={global_size: 32, micro_size: 32}",
        "optimizer.lr=0.025",
        "augment.crop_scale=[0.8, 1.0]",
        "loss.label_smoothing=0.0",
        "ema={decay: 0.995}",
    ),
    "best": (),
}
TIMM = (
    "--train-split train --val-split val --model legacy_seresnext26_32x4d --num-classes 10 --img-size 64 "
    "--crop-pct 1.0 --batch-size 64 --opt sgd --momentum 0.9 --lr 0.05 --sched cosine --epochs 8 --warmup-epochs 1 "
    "--scale 0.35 1.0 --smoothing 0.1 --weight-decay 1e-4 --device cpu --workers 1"
)
# The printed lines of a validation. Our figures are in metrics.jsonl; timm's are in the last line of a validation.
OURS_VALIDATED = re.compile(r"^validate (\(ema\) )?step ")
TIMM_VALIDATED = re.compile(r"^Test: \[ *(\d+)/\1\].*Acc@1: +\S+ \( *([\d.]+)\)  Acc@5: +\S+ \( *([\d.]+)\)")


class ExperimentFailed(Failure):
    """A training that failed."""


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(EXPERIMENTS)} (default: all)")
    parser.add_argument(
        "--data", type=path_argument, required=True, metavar="DIR", help="folder with `train` and `val`"
    )
    parser.add_argument("--output", type=path_argument, required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="default: 0")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="default: all cores")
    parser.add_argument(
        "--timm", type=path_argument, metavar="TRAIN_PY", help="train.py of timm's repository, trained first"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in EXPERIMENTS]:
        raise UsageError(f"no experiment is called {', '.join(unknown)}; the names are {', '.join(EXPERIMENTS)}")
    for folder in (options.data / "train", options.data / "val"):
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; --data takes a folder with `train` and `val`")
    if options.timm and not options.timm.is_file():
        raise UsageError(f"{options.timm} is not a file; --timm takes train.py of timm's repository")

    names = [*(["timm"] if options.timm else []), *(options.names or EXPERIMENTS)]
    file = options.output / "results.json"
    results = {(row["name"], row["seed"]): row for row in json.loads(file.read_text())} if file.exists() else {}
    for seed in options.seeds:
        for name in names:
            if (name, seed) not in results:
                train = train_timm if name == "timm" else train_ours
                row = train(name, seed, options.output / f"{name}-{seed}", options)
                results[name, seed] = {"name": name, "seed": seed, "threads": options.threads, **row}
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(list(results.values()), indent=1) + "\n")
    print(table(results, names, options.seeds))


def table(results: dict[tuple[str, int], dict[str, Any]], names: list[str], seeds: list[int]) -> str:
    """Return the rows of these runs as Markdown: the last validation, and the seconds until timm's top-1."""
    lines = [
        "| experiment | seed | top-1 | top-5 | s | processor s | timm's top-1 reached after, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed in seeds:
        goal = results.get(("timm", seed))
        for row in (results[name, seed] for name in names):
            last = row["validations"][-1]
            reached = reached_after(row, goal["validations"][-1]["top1"]) if goal else None
            when = "never" if reached is None else f"{reached:.0f}"
            lines.append(
                f"| {row['name']} | {seed} | {last['top1']:.1f} | {last['top5']:.1f} | {row['seconds']:.0f} "
                f"| {row['processor_seconds']:.0f} | {when if goal else ''} |"
            )
    return "\n".join(lines)


def reached_after(row: dict[str, Any], top1: float) -> float | None:
    """Return the seconds from the start of a run to the first validation with this accuracy, or None."""
    return next((seen["seconds"] for seen in row["validations"] if seen["top1"] >= top1), None)


def train_ours(name: str, seed: int, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train by train.py in one process, and return the times and validations."""
    command = [sys.executable, str(ROOT / "train.py"), "--recipe", "cifar10", "--data", str(options.data)]
    command += ["--output", str(output), "--resume", "never", "--set", f"runtime.seed={seed}"]
    command += [word for setting in EXPERIMENTS[name] for word in ("--set", setting)]
    lines, times = watch(f"{name}-{seed}", command, options.threads)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["event"] == "validate"]
    when = [seconds for seconds, line in lines if OURS_VALIDATED.match(line)]
    seen = [
        {"seconds": seconds, "epoch": row["epoch"], "top1": row["top1"], "top5": row["top5"], "weights": row["weights"]}
        for seconds, row in zip(when, rows, strict=True)
    ]
    # The validations of the weights that choose the best checkpoint: the average if the run has one.
    chosen = rows[-1]["weights"] if len({row["weights"] for row in rows}) == 1 else "ema"
    return {**times, "command": command[1:], "validations": [one for one in seen if one["weights"] == chosen]}


def train_timm(name: str, seed: int, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train by timm's train.py, and return the times and validations."""
    command = [sys.executable, str(options.timm), "--data-dir", str(options.data), *TIMM.split(), "--seed", str(seed)]
    command += ["--output", str(output), "--experiment", name]
    lines, times = watch(f"{name}-{seed}", command, options.threads)
    found = [(seconds, match) for seconds, line in lines if (match := TIMM_VALIDATED.match(line))]
    validations = [
        {"seconds": seconds, "epoch": number, "top1": float(match[2]), "top5": float(match[3]), "weights": "model"}
        for number, (seconds, match) in enumerate(found, 1)
    ]
    if not validations:
        raise ExperimentFailed(f"timm's train.py printed no validation; the last lines are {lines[-1:]}")
    return {**times, "command": command[1:], "validations": validations}


def watch(label: str, command: list[str], threads: int) -> tuple[list[tuple[float, str]], dict[str, float]]:
    """Run a command. Return the lines with the seconds since the start, and the wall and processor time."""
    began, used = time.monotonic(), _children_seconds()
    lines: list[tuple[float, str]] = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append((time.monotonic() - began, line.rstrip("\n")))
            if OURS_VALIDATED.match(line) or TIMM_VALIDATED.match(line):
                print(f"{label}, {lines[-1][0]:.0f} s: {line.rstrip()}", flush=True)
    if process.returncode:
        raise ExperimentFailed(f"{label} ended with {process.returncode}: {lines[-1][1] if lines else 'no output'}")
    return lines, {"seconds": time.monotonic() - began, "processor_seconds": _children_seconds() - used}


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    run_script(main)
