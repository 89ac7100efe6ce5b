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
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from benchmark.bench_worker import PARTS, Options

from seresnext.errors import UsageError
from seresnext.models import create_model
from seresnext.models.counting import count_multiply_adds
from seresnext.runtime import resolve_compile, resolve_precision

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp64")
TABLE = ("fp32", "tf32", "bf16", "fp16")
SWITCH = {"auto": "auto", "true": True, "false": False}
SHOWN = (*PARTS, "overhead")
Answers = list[dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py step`."""
    parser.add_argument("--model", default="seresnext50", metavar="NAME", help="default: seresnext50")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="side of an image (default: 224)")
    parser.add_argument("--micro", type=int, default=16, metavar="N", help="images of a step and rank (default: 16)")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="of a round (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="that count (default: 5)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of a process (default: the cores, shared by the ranks)"
    )
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes of one run (default: 1)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp32; on CUDA a table of all but fp64")
    parser.add_argument(
        "--compile", choices=SWITCH, default="auto", help="as runtime.compile; in a table auto is both (default: auto)"
    )
    parser.add_argument("--channels-last", choices=SWITCH, default="true", help="as in recipes (default: true)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another key of runtime")
    parser.add_argument("--peer", action="append", default=[], choices=["timm"])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the images per second of ours and of the peer, the ratio, and the breakdown."""
    if min(arguments.steps, arguments.rounds, arguments.ranks, arguments.micro) < 1:
        raise UsageError("--steps, --rounds, --ranks and --micro are at least 1")
    if arguments.ranks > 1 and arguments.peer:
        raise UsageError("--peer is for one process; remove --peer or --ranks")
    on_gpu = torch.cuda.is_available()
    options = _options(arguments)
    figures: dict[str, Any] = {**asdict(options), "ranks": arguments.ranks, "gpu": _gpu() if on_gpu else None}
    del figures["kind"], figures["tf32"]
    figures["precision"] = arguments.precision or options.precision
    figures["flops_per_image"] = training_flops(arguments.model, arguments.size)
    if on_gpu and arguments.precision is None and arguments.ranks == 1:
        return {**figures, **_measure_table(options, arguments, figures["flops_per_image"])}
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(Workers(options, arguments.ranks, together=True))}
        for peer in arguments.peer:
            workers[peer] = stack.enter_context(Workers(replace(options, kind=peer), 1))
        if arguments.ranks > 1:
            workers["independent"] = stack.enter_context(Workers(options, arguments.ranks))
        return {**figures, **_measure(workers, arguments, figures["flops_per_image"], on_gpu)}


def _measure(
    workers: dict[str, Workers], arguments: argparse.Namespace, flops_per_image: int, on_gpu: bool
) -> dict[str, Any]:
    rounds = take_turns(workers, 1 + arguments.rounds)
    parts = workers["ours"].round(parts=True) if on_gpu else None
    figures = summarise(rounds, flops_per_image)
    figures["breakdown"] = breakdown([parts] if parts else rounds["ours"], arguments.steps)
    return figures


def training_flops(model: str, size: int) -> int:
    """Return the operations of a training step for one image. The backward pass has twice the forward products."""
    with torch.device("meta"):
        return 2 * 3 * count_multiply_adds(create_model(model), image_size=size)


def _options(arguments: argparse.Namespace) -> Options:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    words = [word.partition("=") for word in arguments.set]
    return Options(
        kind="ours",
        model=arguments.model,
        size=arguments.size,
        micro=arguments.micro,
        steps=arguments.steps,
        threads=arguments.threads or max(1, cores // arguments.ranks),
        precision="fp32" if arguments.precision in (None, "tf32") else arguments.precision,
        compile=SWITCH[arguments.compile],
        channels_last=SWITCH[arguments.channels_last],
        tf32=arguments.precision == "tf32",
        runtime={key: json.loads(value) for key, _, value in words},
    )


# ----------------------------------------------------------------------------------------------------- rounds


class Workers:
    """Processes that train a round at the same time: the ranks of one run (`together`), or separate runs."""

    def __init__(self, options: Options, count: int, together: bool = False) -> None:
        environments: list[dict[str, str]] = [{} for _ in range(count)]
        if together and count > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
            sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            for rank, environment in enumerate(environments):
                environment |= {**shared, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(Path(__file__).parent / "bench_worker.py"), json.dumps(asdict(options))]
        self._kind = options.kind
        # A full pipe would stop a worker, since nobody reads stderr during a round.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(options.threads), **environment},
            )
            for environment in environments
        ]

    def __enter__(self) -> Workers:
        try:
            for process in self._processes:
                self._answer(process, "ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()
        self._stderr.close()

    def round(self, parts: bool = False) -> Answers:
        """Train a round and return the figures of each process. With `parts`, each part of a step waits for the GPU."""
        for process in self._processes:
            assert process.stdin
            process.stdin.write("parts\n" if parts else "\n")
            process.stdin.flush()
        return [json.loads(self._answer(process)) for process in self._processes]

    def _answer(self, process: subprocess.Popen[str], expected: str | None = None) -> str:
        assert process.stdout
        line = process.stdout.readline().rstrip("\n")
        if not line or expected not in (None, line):
            process.kill()
            process.communicate()
            self._stderr.seek(0)
            reason = self._stderr.read().strip().splitlines()[-1:] or ["no reason printed"]
            raise UsageError(f"{self._kind} does not train: {reason[0]}")
        return line


def take_turns(workers: dict[str, Workers], count: int) -> dict[str, list[Answers]]:
    """Return the rounds of all workers, which take turns, without the first round."""
    rounds: dict[str, list[Answers]] = {name: [] for name in workers}
    for number in range(count):
        for name, worker in workers.items():
            rounds[name].append(worker.round())
        words = ", ".join(f"{name} {rate(taken[-1]):.2f}" for name, taken in rounds.items())
        print(f"round {number}{' (not counted)' if number == 0 else ''}: {words} images/s", flush=True)
    return {name: taken[1:] for name, taken in rounds.items()}


def rate(answers: Answers) -> float:
    """Return the images per second of all processes of a round."""
    return sum(one["images"] / one["seconds"] for one in answers)


# ---------------------------------------------------------------------------------------------------- figures


def summarise(rounds: dict[str, list[Answers]], flops_per_image: int) -> dict[str, Any]:
    """Return medians, and the median of the ratios of neighbouring rounds."""
    rates = {name: [rate(answers) for answers in taken] for name, taken in rounds.items()}
    ours = statistics.median(rates["ours"])
    product = statistics.median(sum(one["matrix_product"] for one in answers) for answers in rounds["ours"])
    memory = {name: max(one["peak_memory"] for answers in taken for one in answers) for name, taken in rounds.items()}
    found: dict[str, Any] = {
        "images_per_second": ours,
        "rounds": rates["ours"],
        "peak_memory": memory["ours"],
        "matrix_product_flops": product,
        "share_of_peak": ours * flops_per_image / product,
        "peer": {},
        "ratio": {},
    }
    print(f"ours: {ours:.2f} images/s, {memory['ours'] / 2**30:.2f} GiB a process at most")
    print(
        f"{ours * flops_per_image / 1e9:.0f} GFLOP/s, {found['share_of_peak']:.0%} of the {product / 1e9:.0f} that a "
        "matrix product reaches"
    )
    for name in rates.keys() - {"ours"}:
        theirs = statistics.median(rates[name])
        found["peer"][name] = {"images_per_second": theirs, "rounds": rates[name], "peak_memory": memory[name]}
        found["ratio"][name] = statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True))
        times = f"ratio {found['ratio'][name]:.3f}"
        print(f"{name}: {theirs:.2f} images/s, {memory[name] / 2**30:.2f} GiB; {times}")
    return found


def breakdown(rounds: list[Answers], steps: int) -> dict[str, float]:
    """Return the milliseconds of each part of a step in the median round of rank 0; `overhead` is the rest."""
    by_speed = sorted((answers[0] for answers in rounds), key=lambda one: one["seconds"])
    median = by_speed[(len(by_speed) - 1) // 2]
    overhead = median["seconds"] - sum(median[name] for name in PARTS)
    found = {name: 1e3 * seconds / steps for name, seconds in {**median, "overhead": overhead}.items() if name in SHOWN}
    print("milliseconds a step: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
    found["overhead_share"] = overhead / median["seconds"]
    print(f"overhead: {found['overhead_share']:.2%} of the step")
    return found


# ----------------------------------------------------------------------------------------------------- a table


def _measure_table(options: Options, arguments: argparse.Namespace, flops_per_image: int) -> dict[str, Any]:
    """Measure all precisions, eager and compiled: images per second, share of the matrix product (MFU), memory, peers.

    A peer is always eager. One process of a peer serves all rows of a precision.
    """
    device = torch.device("cuda")
    compiler, notice = resolve_compile(True, device)
    wanted = (False, True) if options.compile == "auto" else (options.compile,)
    compiles = sorted({compiled and compiler for compiled in wanted})
    if notice and True in wanted:
        print(notice)
    rows = []
    for precision in TABLE:
        row = replace(options, precision="fp32" if precision == "tf32" else precision, tf32=precision == "tf32")
        with ExitStack() as stack:
            peers = {peer: stack.enter_context(Workers(replace(row, kind=peer), 1)) for peer in arguments.peer}
            for compiled in compiles:
                print(f"{precision}, {'compiled' if compiled else 'eager'}:")
                with Workers(replace(row, compile=compiled), 1) as ours:
                    figures = _measure({"ours": ours, **peers}, arguments, flops_per_image, on_gpu=True)
                rows.append({"precision": precision, "compiled": compiled, **figures})
    usual = resolve_precision("auto", device)
    return {**next(row for row in reversed(rows) if row["precision"] == usual), "table": rows}


def _gpu() -> str:
    return torch.cuda.get_device_name()
