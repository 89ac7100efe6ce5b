"""Checks of the devices: versions and clocks of ranks, memory and speed of real steps, all-reduce and loader."""

import gc
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from seresnext.check.findings import Finding, judge
from seresnext.check.steps import MemoryUse, Steps, free_memory, training_data
from seresnext.data import pipeline
from seresnext.data.decode.regions import DECODER
from seresnext.data.loading.loader import open_batches, train_keys
from seresnext.data.order import Order
from seresnext.data.readers import Reader
from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.recipe.check import least_micro_size
from seresnext.recipe.schema import Recipe
from seresnext.run.dry_run import Spread, number
from seresnext.run.environment import describe_environment, settings_of_bits

_MEMORY_SECONDS, _STEP_SECONDS = 20.0, 18.0
_BATCH = 16  # images without a GPU: slow workers deliver soon. For a GPU, real batches must fit the shared memory.
_WARM_UP_SECONDS, _WINDOWS, _WINDOW_SECONDS = 6.0, 5, 1.5
_COMPILED = 3547 / 2202
"""How many times faster a compiled step is: SE-ResNeXt-50 in bf16 on one H100 (docs/benchmarks.md)."""
_REDUCE_SECONDS, _MOST_OF_STEP, _MOST_APART = 5.0, 0.3, 1.0
_FATAL = {"seresnext", "torch", "cuda", "git_commit"}  # Ranks must have the same. Other differences change last bits.


class Speeds(NamedTuple):
    """Seconds of a whole step without waits for data, bytes of a checkpoint, images/s of the loaders of all ranks."""

    step: Spread
    checkpoint_bytes: int
    loader: Spread | None = None


def check_devices(recipe: Recipe, reader: Reader, world: World) -> tuple[list[Finding], Speeds | None]:
    """Return the findings about the devices, and the speeds. All ranks call this together."""
    environments, clocks = world.gather(describe_environment(world)), measure_clocks(world)
    ranks = [judge_versions(environments), judge_clocks(*clocks, [each["host"] for each in environments])]
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world.size > 1 else 1
    steps, speeds = _check_steps(recipe, world, sharing)
    wanted = recipe.batch.global_size / world.size / speeds.step.median if speeds else 0.0
    world.any(False)  # All ranks load at the same time.
    try:
        with world.agreeing():
            rate = measure_loader(recipe, reader, world)
    except DataError as error:
        loading = judge("devices", "loader alone", str(error), "repair the data first", verdict="failure")
    else:
        rate = min(world.gather(rate))
        loading = judge_loader(rate, wanted, recipe.data.workers, len(os.sched_getaffinity(0)) / sharing)
        speeds = speeds and speeds._replace(loader=rate.times(world.size))
    return [*ranks[: world.size], *steps, loading], speeds  # The clock of one rank is not compared.


def judge_versions(environments: Sequence[Mapping[str, Any]]) -> Finding:
    """Return the finding about versions and hardware of the ranks, in the order of the ranks."""
    first, *others = map(settings_of_bits, environments)
    host = environments[0]["host"]
    differences = {
        name: f"{name}: {now[name]} for rank {rank} on {environments[rank]['host']}, {before} for rank 0 on {host}"
        for rank, now in enumerate(others, 1)
        for name, before in first.items()
        if now.get(name) not in (None, before)
    }
    if not differences:
        count = f"{len(environments)} rank{'s' * bool(others)}"
        return judge("devices", "versions", f"{count}: torch {first['torch']}, {first['gpu'] or first['cpu']}")
    fix = "install the same commit and constraints.txt on all machines, and use machines of one kind"
    verdict = "failure" if _FATAL & differences.keys() else "warning"
    return judge("devices", "versions", "\n".join(differences.values()), fix, verdict=verdict)


def measure_clocks(world: World) -> tuple[list[float], float]:
    """Return the seconds that the clock of each rank is ahead of rank 0, and the uncertainty in seconds.

    The ranks read their clocks after a barrier, which all leave within its duration.
    """
    world.any(False)
    started = time.perf_counter()
    world.any(False)
    readings = world.gather((time.time(), time.perf_counter() - started))
    return [now - readings[0][0] for now, _ in readings], max(took for _, took in readings)


def judge_clocks(offsets: Sequence[float], uncertainty: float, hosts: Sequence[str]) -> Finding:
    """Return the finding about the clocks of the ranks."""
    rank = max(range(len(offsets)), key=lambda number: abs(offsets[number]))
    measured = f"at most {offsets[rank]:+.2g} s apart (rank {rank} on {hosts[rank]}), within {uncertainty:.1g} s"
    fix = f"start chrony or ntpd on {hosts[rank]}: logs do not match, and object stores refuse wrong times"
    is_apart = abs(offsets[rank]) - uncertainty > _MOST_APART
    return judge("devices", "clocks", measured, fix * is_apart, offsets=offsets, within=uncertainty)


def _check_steps(recipe: Recipe, world: World, sharing: int) -> tuple[list[Finding], Speeds | None]:
    """Return the findings about steps and the all-reduce, and the speeds, None if no step fits the memory."""
    micro, share = recipe.batch.micro_size, recipe.batch.global_size / world.size
    sizes = [size for size in range(least_micro_size(recipe), int(share) + 1) if share % size == 0]
    steps = Steps(recipe, World(device=world.device))  # Alone: a lack of memory would leave other ranks waiting.
    found = steps.uses(micro, free_memory(world.device, sharing), _MEMORY_SECONDS)
    seen = world.gather((found, steps.largest(found, sizes)))
    tightest, largest = min(seen, key=lambda each: (each[1] or 0, each[0].capacity))
    findings = [judge_memory(recipe, tightest, largest)]
    checkpoint = sum(tensor.nbytes for tensors in steps.run.state().values() for tensor in tensors.values())
    del steps
    gc.collect()
    if not tightest.uses:
        return findings, None
    use = ([use for use in tightest.uses if use.seconds < _STEP_SECONDS / 4] or tightest.uses[:1])[-1]
    accumulation = max(1, int(min(share // micro, _STEP_SECONDS / 4 // use.seconds))) if use.micro == micro else 1
    steps = Steps(recipe, world, accumulation)
    seconds = steps.repeat(use.micro, _STEP_SECONDS)
    images, runtime = use.micro * accumulation, steps.run.recipe.runtime
    is_compiled = world.device.type == "cuda" and recipe.runtime.compile in (True, "auto")
    of, precision = recipe.batch.global_size, runtime.precision
    findings.append(judge_step(seconds, images * world.size, of, precision, is_compiled))
    speeds = Speeds(seconds.times(share / images / (_COMPILED if is_compiled else 1)), checkpoint)
    if world.size > 1:
        numbers = sum(weights.numel() for weights in steps.run.model.parameters() if weights.requires_grad)
        width = 2 if runtime.compress_gradients == "bf16" else 8 if precision == "fp64" else 4
        times = measure_all_reduce(width * numbers, world)
        findings.append(judge_all_reduce(width * numbers, world.size, *times, speeds.step.median))
    return findings, speeds


def judge_memory(recipe: Recipe, found: MemoryUse, largest: int | None) -> Finding:
    """Return the finding about the memory of a step, with the line for the recipe."""
    micro, free = recipe.batch.micro_size, f"{found.capacity / 2**30:.1f} GiB"
    line = f"`batch.micro_size: {largest}`" if largest else "`runtime.grad_checkpointing: true`"
    fix, sizes = f"write into the recipe: {line}", [use.micro for use in found.uses]
    if not sizes:
        return judge("devices", "memory", f"the smallest step does not fit into {free}", fix, verdict="failure")
    needed = found.predict(micro)
    measured = f"{needed / 2**30:.2f} of {free} a rank for micro-batches of {micro} images"
    measured += f", predicted from {' and '.join(map(str, sizes[-2:]))}" * (micro not in sizes)
    verdict = "failure" if needed > found.capacity or found.fits(micro) else "warning"  # A real step can fail, too.
    if found.fits(micro) and (largest or micro) >= micro:
        measured, fix = f"{measured}; the largest that fits: {line}" if largest else measured, ""
    values = {"bytes": needed, "capacity_bytes": found.capacity, "largest_micro_size": largest}
    return judge("devices", "memory", measured, fix, verdict=verdict, **values)


def judge_step(seconds: Spread, images: int, of: int, precision: str, is_compiled: bool) -> Finding:
    """Return the finding about eager steps of so many images of all ranks, of a step of `of` images."""
    rate = seconds.rate(images)
    measured = f"{rate.text()} images/s of all ranks, {number(seconds.median)} s for {images:,} images"
    measured += f" of {of:,}" * (images != of) + f", {precision}, eager"
    measured += f"; compiled about {_COMPILED:.1f} times as fast (docs/benchmarks.md)" * is_compiled
    return judge("devices", "step alone", measured, **rate._asdict())


def measure_all_reduce(num_bytes: int, world: World) -> tuple[Spread, Spread]:
    """Return the seconds of an all-reduce of so many bytes, and of one number. All ranks call this together."""

    def seconds(tensor: torch.Tensor) -> float:
        world.any(False)
        started = time.perf_counter()
        world.sum_(tensor)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        return time.perf_counter() - started

    gradient = torch.zeros(num_bytes // 4, device=world.device)
    seconds(gradient)  # This one opens the connections.
    first = max(world.gather(seconds(gradient)))
    whole = [seconds(gradient) for _ in range(min(max(int(_REDUCE_SECONDS / first), 3), 20))]
    return Spread.of(whole), Spread.of([seconds(gradient[:1]) for _ in range(30)])


def judge_all_reduce(num_bytes: int, size: int, whole: Spread, latency: Spread, step_seconds: float) -> Finding:
    """Return the finding about the all-reduce of the gradient of `num_bytes` over `size` ranks."""
    share = whole.median / step_seconds
    bus = whole.rate(2 * (size - 1) / size * num_bytes / 1e9)  # nccl-tests, doc/PERFORMANCE.md
    measured = (
        f"{num_bytes / 1e6:.0f} MB gradient in {whole.times(1e3).text()} ms, {bus.text()} GB/s on the bus, "
        f"latency {number(latency.median * 1e6)} µs: {share:.0%} of a step, mostly during the backward pass"
    )
    fix = "set runtime.compress_gradients=bf16, or use a faster network or a larger batch.global_size"
    fix *= share > _MOST_OF_STEP
    return judge("devices", "all-reduce", measured, fix, seconds=whole.median, gb_per_second=bus.median, share=share)


def measure_loader(recipe: Recipe, reader: Reader, world: World) -> Spread:
    """Return the images/s of this rank's loader while all ranks load. Raises DataError if a class has no good image."""
    recipe = training_data(recipe, format="folder", on_error="substitute")  # Synthetic photographs are decoded, too.
    on_gpu, workers = world.device.type == "cuda", recipe.data.workers
    micro = max(1, min(recipe.batch.micro_size if on_gpu else _BATCH, len(reader) // world.size))
    blocks = {"shard_ids": reader.shard_ids, "shards_per_block": recipe.data.shuffle_shards}
    order = Order(len(reader), micro * world.size, micro, recipe.runtime.seed, **blocks)
    own = range(world.rank, world.rank + 1)
    source, keys = pipeline.batch_source(recipe, reader, training=True), train_keys(order, own, 0, 10**9)
    with (
        reader.prefetch(keys) as keys,
        open_batches(source, keys, workers=workers, timeout=60, pin_memory=on_gpu) as batches,
    ):
        started = time.monotonic()
        for _ in range(3 * max(workers, 1)):  # The workers start together, and deliver together at first.
            next(batches)
            if time.monotonic() - started > _WARM_UP_SECONDS:
                break
        rates = []
        for _ in range(_WINDOWS):
            images, started = 0, time.monotonic()
            while not images or time.monotonic() - started < _WINDOW_SECONDS:
                images += len(next(batches).labels)
            rates.append(images / (time.monotonic() - started))
    return Spread.of(rates)


def judge_loader(rate: Spread, wanted: float, workers: int, cores: float) -> Finding:
    """Return the finding about the images/s of the loader of a rank with so many workers, and the step's `wanted`.

    More workers than `cores` (of a rank) are no faster. Without workers the step waits for all of the loading.
    """
    measured = f"{rate.text()} images/s a rank by {DECODER}, the step takes {number(wanted)}"
    values = {**rate._asdict(), "wanted": wanted, "decoder": DECODER}
    ratio = wanted / rate.median
    if ratio <= (1.0 if workers else 0.1):
        return judge("devices", "loader alone", measured, **values)
    needed = max(math.ceil(ratio * max(min(workers, cores), 1)), workers + 1)
    fix = f"set data.workers={needed}"
    if needed > cores:
        fix = f"use {needed} processor cores a rank instead of {cores:.3g}, or store smaller images"
    fix += '; pip install "seresnext[fast]" has a faster decoder' * (DECODER == "Pillow")
    measured += f"\ndata-bound: {needed} workers a rank needed, {workers} given"
    return judge("devices", "loader alone", measured, fix, workers_needed=needed, **values)
