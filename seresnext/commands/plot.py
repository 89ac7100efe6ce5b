"""`seresnext plot`: draw the loss and accuracy curves of a run as a picture."""

from __future__ import annotations

from argparse import Namespace

from seresnext.arguments import Parser
from seresnext.paths import path_argument
from seresnext.process.packages import require_packages


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", type=path_argument, metavar="RUN_FOLDER")
    parser.add_argument("--output", type=path_argument, metavar="FILE.png", help="default: RUN_FOLDER/curves.png")


def run(options: Namespace) -> None:
    """Run the command."""
    require_packages()
    from seresnext.report.plot import plot_run

    plot_run(options.run, options.output)
