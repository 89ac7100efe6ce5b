"""Measure a part of the project, and the peers of the part.

    python scripts/bench.py loader|index|step|network|checkpoint|export|resume|validate --json FILE [OPTIONS]
    python scripts/bench.py PART --help                                        # the options of a part

Machines drift, so ours and the peers take turns within one run. FILE gets the figures, and the machine, as JSON.
"""

import argparse
import importlib
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

import _python  # noqa: F401

from seresnext.arguments import path_argument
from seresnext.process.exit import run_script

# Each part is a module of scripts/benchmark with `add_arguments(parser)` and `run(arguments) -> dict`.
PARTS = {
    "loader": "images a second of the training loader",
    "index": "time and memory of the index of a large dataset",
    "step": "images a second of training, and the parts of a step",
    "network": "share of a step that two hosts wait for the network",
    "checkpoint": "seconds that training waits for a save",
    "export": "size, latency and images a second of each kind of export",
    "resume": "seconds from a loaded checkpoint to the first step",
    "validate": "images a second of a whole validation",
}


def describe_machine() -> dict[str, Any]:
    """Return the processor, the cores and the versions of this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model, "cores": cores, "python": platform.python_version()}


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` leaves no temporary folder.
    parser = argparse.ArgumentParser(description="Measure a part of the project.")
    subparsers = parser.add_subparsers(dest="part", required=True, metavar="PART")
    chosen = next((word for word in sys.argv[1:] if word in PARTS), None)
    for name, help_text in PARTS.items():
        subparser = subparsers.add_parser(name, help=help_text)
        subparser.add_argument("--json", type=path_argument, metavar="FILE", help="write the figures to FILE")
        if name == chosen:  # Another part may need packages that are missing.
            part = importlib.import_module(f"benchmark.{name}")
            part.add_arguments(subparser)
            subparser.set_defaults(run=part.run)
    arguments = parser.parse_args()

    figures = {"part": arguments.part, **arguments.run(arguments), "machine": describe_machine()}
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
