"""`seresnext runs` and `seresnext plot`: a table and a picture of runs."""

from __future__ import annotations

from argparse import Namespace

from seresnext.arguments import Parser
from seresnext.files import write_json
from seresnext.paths import path_argument


def runs_arguments(parser: Parser) -> None:
    """Declare the arguments of `runs`."""
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="a folder that holds runs, such as runs")
    parser.add_argument("--json", type=path_argument, metavar="FILE", help="also write all values, with the recipes")


def runs(options: Namespace) -> None:
    """Print a table of the runs below a folder: state, best validation, time, and how their recipes differ."""
    from seresnext.report.runs import describe_run, find_runs, print_runs

    found = [describe_run(run) for run in find_runs(options.folder)]
    print_runs(options.folder, found)
    if options.json:
        write_json(options.json, found)


def plot_arguments(parser: Parser) -> None:
    """Declare the arguments of `plot`."""
    parser.add_argument("runs", type=path_argument, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument(
        "--output", type=path_argument, metavar="FILE.png", help="default: curves.png, in the folder of a single run"
    )


def plot(options: Namespace) -> None:
    """Draw the loss and accuracy curves of one run or several runs as a picture."""
    from seresnext.report.plot import plot_runs

    plot_runs(options.runs, options.output)
