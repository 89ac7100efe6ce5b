"""Measure the images per second of training, those of timm's model in a plain loop, and the parts of a step.

    python scripts/bench.py step --model seresnext50 --size 224 --micro 16 --json FILE [--peer timm]
    python scripts/bench.py step --ranks 2 ...

Ours and the peer train in separate processes and take turns, a round of a few steps each, so that a slow machine slows
down both. The real trainer runs, with log, reports and preparation of images; the images come from memory. With
`--ranks`, a run of several processes takes turns with as many runs of one process, which run at the same time.

On a GPU a table has all precisions unless one is given. The other figures then repeat the row of the precision that
recipes have by default.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from benchmark.bench_worker import PARTS, Options
from benchmark.turns import Worker, compare, take_turns
from benchmark.two_hosts import Host

from seresnext.errors import UsageError
from seresnext.models import create_model
from seresnext.models.index import count_multiply_adds
from seresnext.runtime import resolve_compile, resolve_precision

TABLE = ("fp32", "tf32", "bf16", "fp16")
SWITCH = {"auto": "auto", "true": True, "false": False}
Answers = list[dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py step`."""
    add_training_arguments(parser, size=224, steps=2, rounds=5)
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of a process (default: the cores, shared by the ranks)"
    )
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes of one run (default: 1)")
    parser.add_argument("--precision", choices=(*TABLE, "fp64"), help="default: fp32; on CUDA a table of all but fp64")
    parser.add_argument(
        "--compile", choices=SWITCH, default="auto", help="as runtime.compile; in a table auto is both (default: auto)"
    )
    parser.add_argument("--channels-last", choices=SWITCH, default="true", help="as in recipes (default: true)")
    parser.add_argument("--peer", action="append", default=[], choices=["timm"])


def add_training_arguments(parser: argparse.ArgumentParser, size: int, steps: int, rounds: int) -> None:
    """Add the options of the training that is measured, with these defaults."""
    parser.add_argument("--model", default="seresnext50", metavar="NAME", help="default: seresnext50")
    parser.add_argument("--size", type=int, default=size, metavar="N", help=f"side of an image (default: {size})")
    parser.add_argument("--micro", type=int, default=16, metavar="N", help="images of a step and rank (default: 16)")
    parser.add_argument("--steps", type=int, default=steps, metavar="N", help=f"of a round (default: {steps})")
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"that count (default: {rounds})")


def training_options(arguments: argparse.Namespace, threads: int, **more: Any) -> Options:
    """Return our training by the options of the command line. Raises UsageError for numbers below 1."""
    if min(arguments.steps, arguments.rounds, arguments.micro) < 1:
        raise UsageError("--steps, --rounds and --micro are at least 1")
    names = ("model", "size", "micro", "steps")
    return Options(kind="ours", threads=threads, **{name: getattr(arguments, name) for name in names}, **more)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the images per second of ours and of the peer, the ratio, and the breakdown."""
    if arguments.ranks < 1:
        raise UsageError("--ranks is at least 1")
    if arguments.ranks > 1 and arguments.peer:
        raise UsageError("--peer is for one process; remove --peer or --ranks")
    on_gpu = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options = training_options(
        arguments,
        arguments.threads or max(1, cores // arguments.ranks),
        precision=arguments.precision or "fp32",
        compile=SWITCH[arguments.compile],
        channels_last=SWITCH[arguments.channels_last],
    )
    figures = {**asdict(options), "ranks": arguments.ranks, "gpu": torch.cuda.get_device_name() if on_gpu else None}
    del figures["kind"]
    with torch.device("meta"):
        multiply_adds = count_multiply_adds(create_model(arguments.model), image_size=arguments.size)
    # A multiply-add is two operations. The backward pass has twice the forward products.
    flops = figures["flops_per_image"] = 2 * 3 * multiply_adds
    if on_gpu and arguments.precision is None and arguments.ranks == 1:
        return {**figures, **_measure_table(options, arguments, flops)}
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(Workers(options, arguments.ranks, together=True))}
        for peer in arguments.peer:
            workers[peer] = stack.enter_context(Workers(replace(options, kind=peer), 1))
        if arguments.ranks > 1:
            workers["independent"] = stack.enter_context(Workers(options, arguments.ranks))
        return {**figures, **_measure(workers, arguments, flops, on_gpu)}


class Workers:
    """Processes that train a round at the same time: the ranks of one run (`together`), or separate runs.

    With `hosts` each process runs on a host of its own.
    """

    def __init__(self, options: Options, count: int, together: bool = False, hosts: Sequence[Host] = ()) -> None:
        environments: list[dict[str, str]] = [{} for _ in range(count)]
        if together and count > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            shared = {"MASTER_ADDR": hosts[0].address if hosts else "127.0.0.1", "MASTER_PORT": port}
            shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": "1" if hosts else str(count)}
            local = ["0"] * count if hosts else map(str, range(count))
            environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": own} for rank, own in enumerate(local)]
        command = [sys.executable, str(Path(__file__).parent / "bench_worker.py"), json.dumps(asdict(options))]
        commands = [host.command(command) for host in hosts] or [command] * count
        self._workers = [
            Worker(options.kind, words, options.threads, **extra)
            for words, extra in zip(commands, environments, strict=True)
        ]

    def __enter__(self) -> Workers:
        with ExitStack() as stack:
            stack.push(self)
            for worker in self._workers:
                worker.answer()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def round(self, parts: bool = False) -> Answers:
        """Train a round and return the figures of each process. With `parts`, each part of a step waits for the GPU."""
        for worker in self._workers:
            worker.ask("parts" if parts else "")
        return [json.loads(worker.answer()) for worker in self._workers]


def _measure(
    workers: dict[str, Workers], arguments: argparse.Namespace, flops_per_image: int, on_gpu: bool
) -> dict[str, Any]:
    rounds = take_turns({name: worker.round for name, worker in workers.items()}, rate, arguments.rounds)
    parts = workers["ours"].round(parts=True) if on_gpu else None
    figures = compare({name: [rate(answers) for answers in taken] for name, taken in rounds.items()}, "rounds")
    for name, taken in rounds.items():
        memory = max(one["peak_memory"] for answers in taken for one in answers)
        (figures if name == "ours" else figures["peer"][name])["peak_memory"] = memory
        print(f"{name}: {memory / 2**30:.2f} GiB a process at most")
    product = statistics.median(sum(one["matrix_product"] for one in answers) for answers in rounds["ours"])
    reached = figures["images_per_second"] * flops_per_image
    figures |= {"matrix_product_flops": product, "share_of_peak": reached / product}
    print(
        f"{reached / 1e9:.0f} GFLOP/s, {reached / product:.0%} of the {product / 1e9:.0f} that a matrix product reaches"
    )
    return {**figures, "breakdown": breakdown([parts] if parts else rounds["ours"], arguments.steps)}


def rate(answers: Answers) -> float:
    """Return the images per second of all processes of a round."""
    return sum(one["images"] / one["seconds"] for one in answers)


def breakdown(rounds: list[Answers], steps: int) -> dict[str, float]:
    """Return the milliseconds of each part of a step in the median round of rank 0; `overhead` is the rest."""
    by_speed = sorted((answers[0] for answers in rounds), key=lambda one: one["seconds"])
    median = by_speed[(len(by_speed) - 1) // 2]
    spent = {name: median[name] for name in PARTS}
    spent["overhead"] = median["seconds"] - sum(spent.values())
    found = {name: 1e3 * seconds / steps for name, seconds in spent.items()}
    print("milliseconds a step: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
    found["overhead_share"] = spent["overhead"] / median["seconds"]
    print(f"overhead: {found['overhead_share']:.2%} of the step")
    return found


def _measure_table(options: Options, arguments: argparse.Namespace, flops_per_image: int) -> dict[str, Any]:
    """Measure all precisions, eager and compiled: images per second, share of the matrix product (MFU), memory, peers.

    A peer is always eager. One process of a peer serves all rows of a precision.
    """
    device = torch.device("cuda")
    compiler, notice = resolve_compile(True, device)
    wanted = (False, True) if options.compile == "auto" else (options.compile,)
    if notice and True in wanted:
        print(notice)
    rows = []
    for precision in TABLE:
        row = replace(options, precision=precision)
        with ExitStack() as stack:
            peers = {peer: stack.enter_context(Workers(replace(row, kind=peer), 1)) for peer in arguments.peer}
            for compiled in sorted({compiled and compiler for compiled in wanted}):
                print(f"{precision}, {'compiled' if compiled else 'eager'}:")
                with Workers(replace(row, compile=compiled), 1) as ours:
                    figures = _measure({"ours": ours, **peers}, arguments, flops_per_image, on_gpu=True)
                rows.append({"precision": precision, "compiled": compiled, **figures})
    usual = resolve_precision("auto", device)
    return {**next(row for row in reversed(rows) if row["precision"] == usual), "table": rows}
