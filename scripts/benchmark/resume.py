"""Measure the time from a loaded checkpoint to the first step, at several steps of an epoch. A resume replays nothing.

    python scripts/bench.py resume --json FILE

The run has as many synthetic images as ImageNet has images. The code of training resumes from checkpoints of several
steps. The time runs from the end of reading the checkpoint to the forward pass of the first step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seresnext.distributed import World, choose_device
from seresnext.metrics.console import Console
from seresnext.process.stop_request import StopRequest
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
    device = choose_device()
    world = World(device=device)
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
    folder, console = RunFolder(output, world), Console(enabled=False)
    folder.path.mkdir()
    _make_checkpoint(loaded, world, step, folder)
    begin = time.perf_counter()
    saved = find_checkpoint(folder.checkpoints, "auto", world, console.print)
    assert saved
    read = time.perf_counter()
    training = Run(loaded.recipe, saved.recipe, world, console)
    built = time.perf_counter()
    trainer = training.trainer(folder, saved, restored_progress(saved), StopRequest())
    restored = time.perf_counter()

    def has_begun(*_: object) -> None:
        raise _FirstStep

    hook = training.model.register_forward_pre_hook(has_begun)
    try:
        trainer.fit()
    except _FirstStep:
        begun = time.perf_counter()
    else:
        raise AssertionError("there was a step to take")
    hook.remove()
    return {
        "step": step,
        "seconds": begun - read,
        "parts": {"build": built - read, "restore": restored - built, "batch": begun - restored},
        "read_seconds": read - begin,
    }


def _make_checkpoint(loaded: LoadedRecipe, world: World, step: int, folder: RunFolder) -> None:
    training = Run(loaded.recipe, None, world, Console(enabled=False))
    with training.saver(folder.checkpoints) as saver:
        saver.save(step, asdict(Progress(step=step, evaluated=step)))
        saver.finish()
