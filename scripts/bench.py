"""Measure a part of the project, beside its peers where it has any.

    python scripts/bench.py loader|index|checkpoint|resume --json FILE [options of the part; see --help after its name]

Machines drift, so a peer is measured in turns with ours, within one run. What was measured on which machine is written
to FILE as one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import _python  # noqa: F401

from seresnext.paths import path_argument
from seresnext.process.exit import run_script

# Each is a module of scripts/benchmark with `add_arguments(parser)` and `run(arguments) -> dict`.
PARTS = {
    "loader": "images a second of the training loader",
    "index": "how the index of a large dataset behaves",
    "step": "images a second of training, and the parts of a step",
    "checkpoint": "how long a save holds training up",
    "resume": "how soon a run that is started again takes its first step",
}


def describe_machine() -> dict[str, Any]:
    """Processor, cores and versions, for whoever reads the figures elsewhere."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model, "cores": cores, "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a part of the project.")
    subparsers = parser.add_subparsers(dest="part", required=True, metavar="PART")
    chosen = next((word for word in sys.argv[1:] if word in PARTS), None)
    for name, help_text in PARTS.items():
        subparser = subparsers.add_parser(name, help=help_text)
        subparser.add_argument("--json", type=path_argument, metavar="FILE", help="where to write the figures")
        if name == chosen:  # The others may need packages that are not there.
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
