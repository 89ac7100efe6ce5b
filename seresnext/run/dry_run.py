"""A dry run: a few steps and one validation batch, to see whether a recipe works, with estimates for the whole run."""

from __future__ import annotations

import itertools
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import NamedTuple

import torch

from seresnext.distributed import World
from seresnext.evaluation import evaluate
from seresnext.metrics.console import Console
from seresnext.process.signals import StopRequest
from seresnext.recipe.schema import Recipe
from seresnext.run.assemble import Run
from seresnext.run.train import introduce
from seresnext.runtime import PRECISIONS
from seresnext.training.nonfinite import describe_skip
from seresnext.training.plan import Progress
from seresnext.training.trainer import Trainer

_STEPS = 5


def dry_run(recipe: Recipe, world: World, stop: StopRequest) -> None:
    """Build everything, take a few steps, validate one batch, and print time, memory and an estimate for the whole run.

    Writes nothing.
    """
    console = Console(enabled=world.is_first)
    run = Run(recipe, None, world, console)
    console.print(introduce(run, world))
    trainer = run.trainer(None, None, Progress(), stop)
    seconds, validation_seconds = time_steps(trainer), time_validation(trainer)
    step = Spread.of(seconds)
    where = " on the GPU" if world.device.type == "cuda" else ""
    total = step.times(run.plan.total, validation_seconds * run.plan.evaluations)
    console.print(
        f"one step takes {step.text()} s ({number(run.plan.global_size / step.median)} images/s, "
        f"the median of {len(seconds)}), one validation about {number(validation_seconds)} s\n"
        f"peak memory of rank 0: {peak_memory(world.device) / 2**30:.2f} GiB{where}\n"
        f"estimated time for the whole run: {total.text(duration)}: {run.plan.total} steps, "
        f"{run.plan.evaluations} validations, without checkpoints\n"
        "nothing was written"
    )


def time_steps(trainer: Trainer) -> list[float]:
    """Take up to 5 steps, and warn about a skipped one. Return the seconds of the steps after the first."""
    seconds = []
    with trainer.train_batches(0, trainer.plan.total) as batches:
        for step in range(min(_STEPS, trainer.plan.total)):
            started = time.monotonic()
            result = trainer.step(batches, step=step, lr=trainer.schedule.lr_at(step), stop=False).result()
            seconds.append(time.monotonic() - started)
            if result.skipped and not result.overflowed:
                skip = describe_skip(result, trainer.names)
                trainer.logger.write({"event": "skipped", **asdict(skip)}, text=skip.warning)
    return seconds[1:] or seconds


def time_validation(trainer: Trainer) -> float:
    """Validate one batch a rank, and return the estimated seconds of a whole validation."""
    world, num_batches = trainer.world, trainer.num_val_batches
    precision = PRECISIONS[trainer.recipe.runtime.precision]
    with trainer.val_batches() as batches:
        own = list(itertools.islice(batches, 1))
        started = time.monotonic()
        for model in trainer.models.values():
            evaluate(model, iter(own), num_batches=min(world.size, num_batches), world=world, precision=precision)
        return (time.monotonic() - started) * math.ceil(num_batches / world.size)


_DAY = 86400


class Spread(NamedTuple):
    """The median and the range of repeated measurements of one number."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def rate(self, count: float) -> Spread:
        """Return the spread of `count` items a second, for a spread of seconds."""
        return Spread(count / self.median, count / self.high, count / self.low)

    def times(self, factor: float, more: float = 0.0) -> Spread:
        """Return the spread times a factor, plus `more`."""
        return Spread(*(factor * value + more for value in self))

    def text(self, form: Callable[[float], str] | None = None) -> str:
        """Return `12.3 (11.9 to 12.8)`, or the number alone if there is no range."""
        median, low, high = map(form or number, self)
        return median if low == high else f"{median} ({low} to {high})"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has used: of its GPU, or of the host if the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # The kernel counts kibibytes.


def number(value: float) -> str:
    """Return a number with three digits, or a whole number from 100 on: `0.0123`, `12.3`, `1,234`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return `1:02:03`, or `12.3 days` above two days."""
    return f"{seconds / _DAY:,.1f} days" if seconds > 2 * _DAY else str(timedelta(seconds=round(seconds)))
