"""A process of the benchmark of the step: trains a round of steps for each line of stdin, and prints the figures.

    python scripts/benchmark/bench_worker.py OPTIONS_AS_JSON

`ours` is the real trainer on a run of a recipe, with images from memory. `timm` is timm's model in a plain loop. The
process prints `ready` after the first steps, and then a line of JSON for each round.
"""

import importlib
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

import seresnext.training.step
from seresnext.data.batches import Batch
from seresnext.data.loading.prefetch import DeviceBatch, prefetch
from seresnext.distributed import World, choose_device, open_world
from seresnext.metrics.console import Console
from seresnext.models.registry import canonical_name
from seresnext.process.signals import StopRequest
from seresnext.recipe.load import recipe_from_values
from seresnext.recipe.schema import Recipe
from seresnext.run.assemble import Run
from seresnext.run.folder import RunFolder
from seresnext.runtime import PRECISIONS, Precision
from seresnext.training.plan import Progress

PARTS: tuple[str, ...] = ("forward", "backward", "gradient_norm", "optimizer")
NEVER = f"{10**8}st"
DROP_RATE = 0.2
# Before the first round: memory grows to the peak, torch compiles, DDP orders the buckets.
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Options:
    """The training of a worker. `compile`, `channels_last` and `compress` concern `ours`. Recipes lack `tf32`."""

    kind: str
    model: str
    size: int
    micro: int
    steps: int
    threads: int
    precision: str = "fp32"
    compile: bool | str = "auto"
    channels_last: bool | str = True
    compress: str = "none"

    @property
    def recipe_precision(self) -> str:
        return "fp32" if self.precision == "tf32" else self.precision

    def set_tf32(self) -> None:
        """Allow or forbid TF32 in products and convolutions of fp32. By default torch allows TF32 in convolutions."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"


class Clock:
    """Seconds of the parts of a step. On a GPU each part waits for the device, so only some rounds enable the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.enabled = device.type == "cpu"
        self.spent = dict.fromkeys(PARTS, 0.0)
        self._open: tuple[str, float] | None = None

    def now(self) -> float:
        """Return the time, after the device has done all queued work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def begin(self, part: str) -> None:
        """Begin a part, and end the open part."""
        self.end()
        if self.enabled:
            self._open = (part, self.now())

    def end(self) -> None:
        """End the open part, if there is one."""
        if self._open:
            part, began = self._open
            self.spent[part] += self.now() - began
            self._open = None

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls are a part."""

        def wrapped(*words: Any, **named: Any) -> Any:
            self.begin(part)
            result = function(*words, **named)
            self.end()
            return result

        return wrapped


def rounds(options: Options, clock: Clock, device: torch.device, answers: TextIO) -> Iterator[int]:
    """Yield the number of steps of each round, first of the warm-up, and print the figures. End with stdin."""
    yield WARM_UP_STEPS
    print("ready", file=answers, flush=True)
    precision = PRECISIONS[options.recipe_precision]
    for line in sys.stdin:
        clock.enabled = device.type == "cpu" or line == "parts\n"
        clock.spent = dict.fromkeys(PARTS, 0.0)
        began = clock.now()
        yield options.steps
        figures = {
            "seconds": clock.now() - began,
            "images": options.steps * options.micro,
            "peak_memory": peak_memory(device),
            "matrix_product": matrix_product_flops(device, precision.autocast_to or precision.weights),
        }
        print(json.dumps({**figures, **clock.spent}), file=answers, flush=True)


def matrix_product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of a large square matrix product, the practical maximum.

    A multiply-add is two operations.
    """
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        clock = Clock(device)
        began = clock.now()
        torch.mm(a, b)
        times.append(clock.now() - began)
    return 2 * side**3 / min(times)


def peak_memory(device: torch.device) -> int:
    """Return the bytes of the whole process on the CPU, or of torch's allocations on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ------------------------------------------------------------------------------------------------------- ours


def run_ours(options: Options, answers: TextIO) -> None:
    """Train by the trainer of the project until the input ends.

    The forward part is the time from the delivery of a batch to the start of the backward pass.
    """
    with open_world() as world, tempfile.TemporaryDirectory() as folder:
        run = BenchRun(our_recipe(options, world.size), None, world, Console(enabled=False))
        options.set_tf32()
        run_folder = RunFolder(Path(folder), world)
        run_folder.open()
        trainer = run.trainer(run_folder, None, Progress(), StopRequest())
        clock = Clock(world.device)
        Tensor.backward = clock.timed("backward", Tensor.backward)  # pyright: ignore[reportAttributeAccessIssue]
        seresnext.training.step.get_total_norm = clock.timed("gradient_norm", seresnext.training.step.get_total_norm)
        for name in ("step", "zero_grad"):
            setattr(run.optimizer, name, clock.timed("optimizer", getattr(run.optimizer, name)))
        run.stream = our_stream(run, world, rounds(options, clock, world.device, answers), clock)
        trainer.fit()


class BenchRun(Run):
    """A run with training batches from `stream`."""

    stream: Iterator[DeviceBatch]

    def train_batches(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *_: Any
    ) -> AbstractContextManager[Iterator[DeviceBatch]]:
        return nullcontext(self.stream)


def our_recipe(options: Options, ranks: int) -> Recipe:
    """Return the recipe: the defaults, without validations and saves during the rounds."""
    recipe = {
        "model": {"name": options.model, "drop_rate": DROP_RATE},
        "data": {
            "format": "synthetic",
            "synthetic_images": options.micro * ranks,
            "image_size": options.size,
            "workers": 0,
        },
        "augment": {},
        "batch": {"global_size": options.micro * ranks, "micro_size": options.micro},
        "length": NEVER,
        "optimizer": {"lr": 0.01},
        "evaluation": {"every": NEVER},
        "checkpoint": {"every": NEVER},
        "runtime": {
            "precision": options.recipe_precision,
            "compile": options.compile,
            "channels_last": options.channels_last,
            "compress_gradients": options.compress,
        },
    }
    return recipe_from_values(recipe, "the benchmark")


def our_stream(run: Run, world: World, steps_of_rounds: Iterator[int], clock: Clock) -> Iterator[DeviceBatch]:
    """Yield one uint8 batch again and again, as the loader delivers batches, through the real preparation."""
    recipe = run.recipe
    data, micro = recipe.data, run.plan.global_size // world.size
    images = torch.randint(256, (micro, data.image_size, data.image_size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(recipe.model.num_classes, (micro,))
    flips = torch.arange(micro) % 2 == 0
    batches = (Batch(images, labels, flips, labels, step, world.rank) for step in itertools.count())
    prepared = prefetch(
        batches,
        device=world.device,
        dtype=PRECISIONS[recipe.runtime.precision].weights,
        mean=data.mean,
        std=data.std,
        channels_last=recipe.runtime.channels_last is True,
        compiled=world.device.type == "cuda" and recipe.runtime.compile is True,
    )
    for steps in steps_of_rounds:
        for _ in range(steps):
            batch = next(prepared)
            clock.begin("forward")
            yield batch


# ------------------------------------------------------------------------------------------------------- timm


def run_timm(options: Options, answers: TextIO) -> None:
    """Train timm's model of the same name, eager, in a plain loop until the input ends."""
    timm: Any = importlib.import_module("timm")
    device = choose_device()
    precision: Precision = PRECISIONS[options.recipe_precision]
    model = timm.create_model(canonical_name(options.model), drop_rate=DROP_RATE).to(device, precision.weights).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(options.micro, 3, options.size, options.size, device=device, dtype=precision.weights)
    labels = torch.randint(1000, (options.micro,), device=device)
    scaler = precision.scaler(device)
    options.set_tf32()
    torch.backends.cudnn.benchmark = True  # As in timm's train.py, and in ours.
    for steps in rounds(options, Clock(device), device, answers):
        for _ in range(steps):
            with precision.autocast(device):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    # Output of the libraries goes to stderr, since stdout holds the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    {"ours": run_ours, "timm": run_timm}[options.kind](options, answers)


if __name__ == "__main__":
    main()
