"""Measure the share of a step that two hosts wait for each other's gradients, by the bandwidth between the hosts.

    python scripts/bench.py network --json FILE [--megabits 100 --megabits 1000] [--model seresnext50] [--size 64]

The two hosts are network namespaces (benchmark/two_hosts.py), with one process each. Three kinds of training take
turns: the two processes as one run, the same with gradients that are sent as bf16, and two runs of one process at the
same time (`apart`). The share is the part of a step of the one run that a step apart does not have. All processes share
the processors of this machine, also for the network. The fastest round of each kind counts, since other programs only
add time.
"""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from benchmark.step import Answers, Workers, add_training_arguments, training_options
from benchmark.turns import take_turns
from benchmark.two_hosts import Host, measure_megabits, two_hosts

from seresnext.errors import UsageError
from seresnext.models import create_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py network`."""
    parser.add_argument(
        "--megabits",
        type=float,
        action="append",
        metavar="N",
        help="a limit of the bandwidth, 10^6 bits a second; 0 is no limit (default: 100, 1000 and 0)",
    )
    add_training_arguments(parser, size=64, steps=1, rounds=3)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the seconds of a step and the shares, by limit and kind."""
    limits = arguments.megabits or [100.0, 1000.0, 0.0]
    if min(limits) < 0:
        raise UsageError("--megabits is negative; give 0 for no limit")
    options = training_options(arguments, threads=1)
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in create_model(arguments.model).parameters())
    figures = {name: getattr(arguments, name) for name in ("model", "size", "micro")}
    with ExitStack() as stack:
        hosts = stack.enter_context(two_hosts())
        workers = {
            "fp32": stack.enter_context(Workers(options, 2, together=True, hosts=hosts)),
            "bf16": stack.enter_context(Workers(replace(options, compress="bf16"), 2, together=True, hosts=hosts)),
            "apart": stack.enter_context(Workers(options, 2, hosts=hosts)),
        }
        rows = [_measure(limit, hosts, workers, arguments) for limit in limits]
    apart = min(row["seconds_a_step"].pop("apart") for row in rows)  # No limit concerns a step apart.
    for row in rows:
        row["share"] = {name: 1 - apart / seconds for name, seconds in row["seconds_a_step"].items()}
        shares = (
            f"{name} {row['seconds_a_step'][name]:.2f} s a step, {share:.0%}" for name, share in row["share"].items()
        )
        print(f"{_name(row['megabits'])}: {'; '.join(shares)} is the all-reduce; {apart:.2f} s a step apart")
    return {**figures, "gradient_bytes": 4 * parameters, "seconds_a_step_apart": apart, "rows": rows}


def _measure(
    limit: float, hosts: tuple[Host, Host], workers: dict[str, Workers], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the seconds of a step by kind at a limit, in megabits a second (0: none)."""
    for host in hosts:
        host.limit(limit or None)
    reached = measure_megabits(*hosts)
    print(f"{_name(limit)}: {reached:.0f} Mbit/s measured", flush=True)

    def seconds(answers: Answers) -> float:
        return max(one["seconds"] for one in answers) / arguments.steps

    def rate(answers: Answers) -> float:
        return 2 * arguments.micro / seconds(answers)

    rounds = take_turns({name: worker.round for name, worker in workers.items()}, rate, arguments.rounds)
    found = {name: min(map(seconds, taken)) for name, taken in rounds.items()}
    return {"megabits": limit, "measured_megabits": reached, "seconds_a_step": found}


def _name(limit: float) -> str:
    return f"limit {limit:.0f} Mbit/s" if limit else "no limit"
