"""`seresnext average`: average the weights of checkpoints of one recipe into one file."""

from __future__ import annotations

from argparse import Namespace

from seresnext.arguments import Parser
from seresnext.paths import path_argument
from seresnext.process.packages import require_packages


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("checkpoints", type=path_argument, nargs="+", metavar="CHECKPOINT")
    add("--output", type=path_argument, required=True, metavar="FILE", help="a new file, *.safetensors")
    add("--weights", choices=("auto", "model", "ema"), default="auto", help="default: those that chose `best`")


def run(options: Namespace) -> None:
    """Run the command."""
    require_packages()
    from seresnext.run.average import average_checkpoints

    average_checkpoints(options)
