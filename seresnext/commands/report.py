"""`seresnext report`: a web page of a run's best checkpoint, its predictions and its training."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seresnext.arguments import Parser, add_device
from seresnext.errors import UsageError
from seresnext.files import check_output_file
from seresnext.paths import check_data_folder, path_argument, text_argument
from seresnext.process.packages import require_extra
from seresnext.process.stop_request import StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from seresnext.distributed import World
    from seresnext.run.validate import Validation


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = "`seresnext validate --report DIR` writes the page for other weights, images and settings."
    add = parser.add_argument
    add("run", type=path_argument, metavar="RUN", help="the folder of a run")
    add("--output", type=path_argument, metavar="DIR", help="the folder of the page (default: RUN/report)")
    add("--attach", action="store_true", help="also send the page to the trackers of the run (logging.sinks)")
    add("--data", type=text_argument, metavar="DIR", help="the folder with the splits (default: as in training)")
    add_device(parser)


def prepare(options: Namespace, stop: StopRequest) -> Callable[[World], None]:
    """Write a web page about a run: classes, mistakes, calibration, curves.

    Checks that run, data and packages exist, and returns the work of a rank.
    """
    if not options.run.is_dir():
        raise UsageError(f"{options.run} is not the folder of a run; give a folder that `seresnext train` wrote")
    if options.data is not None:
        check_data_folder(options.data)
    if options.attach and not has_tracker(options.run):
        raise UsageError(f"no tracker knows the run {options.run}; train with logging.sinks, or omit --attach")
    options.output = options.output or options.run / "report"
    check_report(options.output, "--output")
    return partial(report_run, options.run, options.output, data=options.data, attach=options.attach)


def has_tracker(run: Path) -> bool:
    """Return whether a tracker knows a run."""
    return any(run.glob("trackers/*.json"))


def check_report(folder: Path, option: str) -> None:
    """Raise UsageError if no report can be written: packages are missing, or the folder cannot be."""
    require_extra("report", "captum", "jinja2")
    check_output_file(folder / "index.html", option)


def report_run(run: Path, folder: Path, world: World, data: str | None = None, attach: bool = False) -> None:
    """Validate the best checkpoint of a run, and write the report. `attach`: also send the page to the trackers."""
    from seresnext.metrics import tracker
    from seresnext.run.validate import validate

    write(validate(run, world, Namespace(data=data)), folder, world)
    if attach and world.is_first:
        tracker.attach(run, folder)


def write(validation: Validation, folder: Path, world: World) -> None:
    """Write the report on rank 0, and print the path."""
    from seresnext.report.page import write_report

    if world.is_first:
        print(f"report: {write_report(validation, folder, world.device)}")
