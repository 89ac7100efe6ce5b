"""The ranks among each other: the all-reduce of gradients, and differences of clocks and versions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from seresnext.check.findings import Finding, judge
from seresnext.distributed import World
from seresnext.run.environment import describe_environment, settings_of_bits
from seresnext.run.estimate import Spread, number

_SECONDS, _MOST_OF_STEP, _MOST_APART = 5.0, 0.3, 1.0
_FATAL = {"seresnext", "torch", "cuda", "git_commit"}  # Ranks must have the same. Other differences change last bits.


def check_ranks(world: World) -> list[Finding]:
    """Return the findings about versions and clocks. All ranks call this together."""
    environments = world.gather(describe_environment(world))
    clocks = measure_clocks(world)
    findings = [judge_versions(environments), judge_clocks(*clocks, [each["host"] for each in environments])]
    return findings if world.size > 1 else findings[:1]


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

    The ranks read their clocks after a barrier. All leave the barrier within its duration, and the shortest one counts.
    """
    rounds = []
    for _ in range(7):
        world.any(False)
        started = time.perf_counter()
        world.any(False)
        readings = world.gather((time.time(), time.perf_counter() - started))
        rounds.append((max(took for _, took in readings), [now - readings[0][0] for now, _ in readings]))
    uncertainty, offsets = min(rounds)
    return offsets, uncertainty


def judge_clocks(offsets: Sequence[float], uncertainty: float, hosts: Sequence[str]) -> Finding:
    """Return the finding about the clocks of the ranks."""
    rank = max(range(len(offsets)), key=lambda number: abs(offsets[number]))
    measured = f"at most {offsets[rank]:+.2g} s apart (rank {rank} on {hosts[rank]}), within {uncertainty:.1g} s"
    fix = f"start chrony or ntpd on {hosts[rank]}: logs do not match, and object stores refuse wrong times"
    is_apart = abs(offsets[rank]) - uncertainty > _MOST_APART
    return judge("devices", "clocks", measured, fix * is_apart, offsets=offsets, within=uncertainty)


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
    whole = [seconds(gradient) for _ in range(min(max(int(_SECONDS / first), 3), 20))]
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
