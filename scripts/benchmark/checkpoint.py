"""Measure how long training waits for a save, and how long a synchronous save takes, with digest and sync to the disk.

    python scripts/bench.py checkpoint --folder DIR --json FILE

A run on synthetic images saves through the code of training. Saves of an idle run and saves during steps take turns.
DIR should be on the disk of the checkpoints.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from seresnext.arguments import path_argument
from seresnext.distributed import World, choose_device
from seresnext.metrics.console import Console
from seresnext.recipe.load import load_recipe
from seresnext.run.assemble import Run
from seresnext.training.plan import Progress

# The largest ratio of the stall to a synchronous write that the project accepts.
TARGET = 0.2
_MOST_STEPS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py checkpoint`."""
    parser.add_argument(
        "--folder", type=path_argument, metavar="DIR", help="folder on the disk to measure (default: temporary)"
    )
    parser.add_argument("--model", default="seresnext101", metavar="NAME", help="default: seresnext101")
    parser.add_argument("--image-size", type=int, default=64, metavar="N", help="image size of the steps (default: 64)")
    parser.add_argument("--saves", type=int, default=5, metavar="N", help="saves of each kind (default: 5)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of the steps on a CPU (default: all cores but one)"
    )


@dataclass(frozen=True)
class Timed:
    """A save: seconds of the stall, seconds of the write after the stall, and the seconds of each step meanwhile."""

    stall: float
    write: float
    steps: list[float]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the figures. A figure of several measurements is the median."""
    torch.set_num_threads(arguments.threads or max(1, len(os.sched_getaffinity(0)) - 1))
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="seresnext-checkpoint-", dir=arguments.folder) as name:
        idle, busy, alone = _measure(Path(name), arguments)
        size = Path(name, "last.safetensors").stat().st_size
    stalls = [save.stall for save in [*idle, *busy]]
    beside = [seconds for save in busy for seconds in save.steps]
    stall, write = statistics.median(stalls), statistics.median(save.write for save in idle)
    step, step_beside = statistics.median(alone), statistics.median(beside) if beside else None
    figures = {
        "stall_seconds": stall,
        "write_seconds": write,
        "bytes": size,
        "ratio": stall / write,
        "stall_seconds_of_first": idle[0].stall,
        "longest_stall_seconds": max(stalls),
        "write_seconds_beside_steps": statistics.median(save.write for save in busy),
        "step_seconds": step,
        "step_seconds_beside_write": step_beside,
        "slowdown_beside_write": step_beside / step if step_beside else None,
        "steps_beside_write": len(beside),
    }
    for name, value in figures.items():
        shown = "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
        print(f"{name:28} {shown:>12}{f'   (asked for: at most {TARGET})' if name == 'ratio' else ''}")
    is_met = figures["ratio"] <= TARGET
    verdict = "met" if is_met else "NOT met"
    print(f"the target is {verdict}: training waits for {stall / write:.1%} of the time of a write")
    more = {"target": TARGET, "is_met": is_met, "model": arguments.model, "threads": torch.get_num_threads()}
    return {**figures, **more}


def _measure(folder: Path, arguments: argparse.Namespace) -> tuple[list[Timed], list[Timed], list[float]]:
    """Return saves of an idle run, saves during steps, and the seconds of steps without a save."""
    settings = [
        "data.format=synthetic",
        "data.synthetic_images=1000",
        "data.workers=0",
        f"data.image_size={arguments.image_size}",
        "batch={global_size: 2, micro_size: 2}",
        "ema={decay: 0.9999}",
        "checkpoint.keep=1",
        "runtime.compile=false",
    ]
    recipe = load_recipe(arguments.model, settings).recipe
    training = Run(recipe, None, World(device=choose_device()), Console(enabled=False))
    training.warm_up()
    with training.train_batches(0, _MOST_STEPS) as batches, training.saver(folder) as saver:
        completed = 0

        def take_step() -> float:
            nonlocal completed
            start = time.perf_counter()
            # Reading the result waits for the device.
            training.step(batches, step=completed, lr=1e-3, stop=False).result()
            completed += 1
            return time.perf_counter() - start

        def save(beside_steps: bool = False) -> Timed:
            """Save like the trainer, and wait for the end of the write."""
            start = time.perf_counter()
            saver.wait()
            saver.save(completed, asdict(Progress(step=completed)))
            saved = time.perf_counter()
            path, last = folder / f"step-{completed:08}.safetensors", folder / "last.safetensors"
            steps = []
            while beside_steps and not (path.exists() and last.exists() and last.samefile(path)):
                steps.append(take_step())
            saver.finish()
            # The write ended during the last step.
            return Timed(saved - start, time.perf_counter() - saved, steps[:-1])

        take_step()
        idle, busy, alone = [], [], []
        for _ in range(arguments.saves):
            alone += [take_step(), take_step()]
            idle.append(save())
            alone += [take_step(), take_step()]
            busy.append(save(beside_steps=True))
    return idle, busy, alone
