"""Measure the time from a loaded checkpoint to the first step, at several steps of an epoch. A resume replays nothing.

    python scripts/bench.py resume --json FILE

The run has as many synthetic images as ImageNet has images. The code of training resumes from checkpoints of several
steps. The time runs from the end of reading the checkpoint to the forward pass of the first step.
"""

import argparse
import itertools
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seresnext.distributed import World, choose_device
from seresnext.metrics.console import Console
from seresnext.process.signals import StopRequest
from seresnext.recipe.load import LoadedRecipe, load_recipe
from seresnext.run.assemble import Run
from seresnext.run.folder import RunFolder
from seresnext.run.resume import find_checkpoint, restored_progress
from seresnext.training.plan import Progress

# The most seconds of a start that the project accepts.
TARGET = 2.0
_EPOCHS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py resume`."""
    parser.add_argument("--images", type=int, default=1_281_167, metavar="N", help="images of the training split")
    parser.add_argument("--model", default="seresnext101", metavar="NAME", help="default: seresnext101")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="loader workers (default: 8)")


class _FirstStep(Exception):
    """The first step has received a batch."""


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the seconds for each step to resume from."""
    settings = [
        "data.format=synthetic",
        f"data.synthetic_images={arguments.images}",
        f"data.workers={arguments.workers}",
        "data.image_size=32",  # The cost of a step is not measured.
        "batch={global_size: 1024, micro_size: 8}",
        f"length={_EPOCHS}ep",
        "runtime.compile=false",
    ]
    loaded = load_recipe(arguments.model, settings)
    epoch = arguments.images // 1024
    places = {
        "start of the run": 0,
        "second step": 1,
        "middle of an epoch": 30 * epoch + epoch // 2,
        "last step of an epoch": 31 * epoch - 1,
        "start of an epoch": 31 * epoch,
        "last step of the run": _EPOCHS * epoch - 1,
    }
    world = World(device=choose_device())
    starts = {}
    with tempfile.TemporaryDirectory(prefix="seresnext-resume-") as folder:
        for name, step in places.items():
            starts[name] = _start(loaded, world, step, Path(folder) / str(step))
            parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in starts[name]["parts"].items())
            print(f"{name:22} step {step:>7,}: {starts[name]['seconds']:.3f} s ({parts})   (asked for: < {TARGET:g})")
    longest = max(start["seconds"] for start in starts.values())
    is_met = longest < TARGET
    print(f"the target is {'met' if is_met else 'NOT met'}: the first step comes within {longest:.3f} s of loading")
    return {"seconds": longest, "target": TARGET, "is_met": is_met, "starts": starts, "images": arguments.images}


def _start(loaded: LoadedRecipe, world: World, step: int, output: Path) -> dict[str, Any]:
    """Save a run at a step, resume from the checkpoint, and return the times up to the first step."""
    folder, console = RunFolder(output, world), Console(enabled=False)
    folder.path.mkdir()
    _save(loaded, world, step, folder, console)
    times = [time.perf_counter()]
    saved = find_checkpoint(folder.checkpoints, "auto", world, console.print)
    assert saved
    times.append(time.perf_counter())
    training = Run(loaded.recipe, saved, world, console)
    times.append(time.perf_counter())
    trainer = training.trainer(folder, saved, restored_progress(saved), StopRequest())
    times.append(time.perf_counter())

    def end(*_: object) -> None:
        times.append(time.perf_counter())
        raise _FirstStep

    hook = training.model.register_forward_pre_hook(end)
    with suppress(_FirstStep):
        trainer.fit()
    hook.remove()
    read, *parts = (after - before for before, after in itertools.pairwise(times))
    named = dict(zip(("build", "restore", "batch"), parts, strict=True))
    return {"step": step, "seconds": sum(parts), "parts": named, "read_seconds": read}


def _save(loaded: LoadedRecipe, world: World, step: int, folder: RunFolder, console: Console) -> None:
    """Save a run at a step. The memory of the saved run is free afterwards."""
    with Run(loaded.recipe, None, world, console).saver(folder.checkpoints) as saver:
        saver.save(step, asdict(Progress(step=step, evaluated=step)))
        saver.finish()
