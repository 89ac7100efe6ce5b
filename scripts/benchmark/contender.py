"""One side of the benchmark of the step: trains rounds of steps when told to, and says how long they took.

    python scripts/benchmark/contender.py OPTIONS_AS_JSON

`ours` is the real trainer: a run assembled from a recipe, whose stream of images comes from memory. `timm` is timm's
model in a plain loop. Says `ready` after the first steps; then for every line that it reads runs a round and says its
figures as a line of JSON.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
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
from seresnext.process.stop_request import StopRequest
from seresnext.recipe.load import recipe_from_values
from seresnext.recipe.schema import Recipe
from seresnext.run.assemble import Run
from seresnext.run.folder import RunFolder
from seresnext.runtime import PRECISIONS, Precision
from seresnext.training.plan import Progress

PARTS: tuple[str, ...] = ("forward", "backward", "gradient_norm", "optimizer")
NEVER = f"{10**8}st"
DROP_RATE = 0.2
# The rounds before the first one that counts: memory grows to its peak, compiled code is made, DDP orders its buckets.
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Options:
    """What a contender trains. `compile` and `channels_last` are ours; `tf32` is for measuring only."""

    kind: str
    model: str
    size: int
    micro: int
    steps: int
    threads: int
    precision: str = "fp32"
    compile: bool | str = "auto"
    channels_last: bool | str = True
    tf32: bool = False
    runtime: dict[str, Any] | None = None


class Clock:
    """Seconds spent in parts of the step. For a GPU each part waits for the device, so it is on only in some rounds."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.enabled = device.type == "cpu"
        self.spent = dict.fromkeys(PARTS, 0.0)

    def now(self) -> float:
        """The time when everything queued so far is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to a part."""

        def wrapped(*words: Any, **named: Any) -> Any:
            if not self.enabled:
                return function(*words, **named)
            began = self.now()
            result = function(*words, **named)
            self.spent[part] += self.now() - began
            return result

        return wrapped


class Rounds:
    """The far end of the benchmark: when to go, and what to tell."""

    def __init__(self, options: Options, clock: Clock, device: torch.device, answers: TextIO) -> None:
        self._options = options
        self._clock = clock
        self._device = device
        self._answers = answers

    def __iter__(self) -> Iterator[int]:
        """The number of steps to take, again and again: first of those that do not count. Ends with the input."""
        yield WARM_UP_STEPS
        self._say("ready")
        for line in sys.stdin:
            self._clock.enabled = self._device.type == "cpu" or line == "parts\n"
            self._clock.spent = dict.fromkeys(PARTS, 0.0)
            began = self._clock.now()
            yield self._options.steps
            seconds = self._clock.now() - began
            images = self._options.steps * self._options.micro
            figures = {"images": images, "seconds": seconds, "peak_memory": peak_memory(self._device)}
            figures["matrix_product"] = matrix_product_flops(self._device, _product_dtype(self._options))
            self._say(json.dumps({**figures, **self._clock.spent}))

    def _say(self, line: str) -> None:
        print(line, file=self._answers, flush=True)


def matrix_product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product, two for a multiply-add: the most to be had in practice."""
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
    """Bytes: of the whole process on the CPU, of what torch allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def use_tf32(options: Options) -> None:
    """Let products and convolutions of fp32 round to TF32, or not: torch alone would let convolutions do so."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32


def _product_dtype(options: Options) -> torch.dtype:
    precision = PRECISIONS[options.precision]
    return precision.autocast_to or precision.weights


# ------------------------------------------------------------------------------------------------------- ours


def run_ours(options: Options, answers: TextIO) -> None:
    """Our trainer, from its recipe on, until the input ends."""
    with open_world() as world, tempfile.TemporaryDirectory() as folder:
        run = Run(our_recipe(options, world.size), None, world, Console(enabled=False))
        use_tf32(options)
        run_folder = RunFolder(Path(folder), world)
        run_folder.open()
        trainer = run.trainer(run_folder, None, Progress(), StopRequest())
        clock = Clock(world.device)
        rounds = Rounds(options, clock, world.device, answers)
        step: Any = trainer._step
        step._forward = clock.timed("forward", step._forward)
        step._loss = clock.timed("forward", step._loss)
        Tensor.backward = clock.timed("backward", Tensor.backward)  # pyright: ignore[reportAttributeAccessIssue]
        seresnext.training.step.get_total_norm = clock.timed("gradient_norm", seresnext.training.step.get_total_norm)
        for name in ("step", "zero_grad"):
            setattr(run.optimizer, name, clock.timed("optimizer", getattr(run.optimizer, name)))
        trainer._train = replace(trainer._train, batches=lambda start: nullcontext(our_stream(run, world, rounds)))
        trainer.fit()


def our_recipe(options: Options, ranks: int) -> Recipe:
    """The recipe: the defaults, and no validation or saving while rounds are taken."""
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
            "precision": options.precision,
            "compile": options.compile,
            "channels_last": options.channels_last,
            **(options.runtime or {}),
        },
    }
    return recipe_from_values(recipe, "the benchmark")


def our_stream(run: Run, world: World, rounds: Rounds) -> Iterator[DeviceBatch]:
    """Batches as the loader hands them over, uint8 and the same ones again, through the real preparation."""
    recipe = run.recipe
    data, micro = recipe.data, run.plan.global_size // world.size
    images = torch.randint(256, (micro, data.image_size, data.image_size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(recipe.model.num_classes, (micro,))
    flips = torch.arange(micro) % 2 == 0
    batches = (Batch(images, labels, flips, labels, step, world.rank) for step in itertools.count())
    prepared = prefetch(
        batches,
        device=world.device,
        dtype=run.precision.weights,
        mean=data.mean,
        std=data.std,
        channels_last=recipe.runtime.channels_last is True,
        compiled=world.device.type == "cuda" and recipe.runtime.compile is True,
    )
    for steps in rounds:
        for _ in range(steps):
            yield next(prepared)


# ------------------------------------------------------------------------------------------------------- timm


def run_timm(options: Options, answers: TextIO) -> None:
    """timm's model of the same name, eager, with the loop that everybody writes, until the input ends."""
    timm: Any = importlib.import_module("timm")
    device = choose_device()
    precision: Precision = PRECISIONS[options.precision]
    model = timm.create_model(canonical_name(options.model), drop_rate=DROP_RATE).to(device, precision.weights).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(options.micro, 3, options.size, options.size, device=device, dtype=precision.weights)
    labels = torch.randint(1000, (options.micro,), device=device)
    scaler = precision.scaler(device)
    use_tf32(options)
    torch.backends.cudnn.benchmark = True  # As in timm's train.py, and in ours.
    for steps in Rounds(options, Clock(device), device, answers):
        for _ in range(steps):
            with precision.autocast(device):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    # What the libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    {"ours": run_ours, "timm": run_timm}[options.kind](options, answers)


if __name__ == "__main__":
    main()
