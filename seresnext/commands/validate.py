"""`seresnext validate` and `seresnext report`: measure a checkpoint on a split, and a web page of a run."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seresnext.arguments import (
    Parser,
    add_device,
    count_argument,
    path_argument,
    share_argument,
    side_argument,
    table_argument,
    text_argument,
    workers_argument,
)
from seresnext.errors import CheckpointError, UsageError
from seresnext.files import HUB_PREFIX, check_data_folder, check_output_file, write_json
from seresnext.process.packages import require_extra
from seresnext.process.signals import StopRequest

if TYPE_CHECKING:
    from seresnext.distributed import World
    from seresnext.run.validate import Validation


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = "`python validate.py` is the same command. docs/evaluation.md has examples and the results."
    add = parser.add_argument
    files = "checkpoints, run folders, published .pth files, names of models, or hf-hub:ORG/NAME"
    add("--checkpoint", required=True, type=path_argument, nargs="+", action="extend", metavar="FILE", help=files)
    add("--data", type=text_argument, metavar="DIR", help="the folder with the splits (default: as in training)")
    add("--split", type=text_argument, metavar="NAME", help="the split (default: as in training, else val)")
    add("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    add("--image-size", type=side_argument, metavar="PIXELS", help="the side of the images (default: as in the file)")
    add("--crop-pct", type=share_argument, metavar="SHARE", help="image size / shorter side after the resize")
    add("--interpolation", choices=("bilinear", "bicubic"), help="of the resize")
    add("--batch-size", type=count_argument, metavar="N", help="images of one forward pass")
    add("--workers", type=workers_argument, metavar="N", help="loader workers of each rank")
    add("--precision", choices=("fp32", "bf16", "fp16", "fp64"), help="of the network")
    add("--flip", action="store_true", help="average the logits of each image and of its mirror image")
    add("--real-labels", type=path_argument, metavar="FILE", help="also measure the reassessed labels: real.json")
    add("--class-map", type=path_argument, metavar="FILE", help="the class of each class folder: lines `folder,class`")
    add("--classes", type=text_argument, metavar="NAMES", help="names of the model's outputs: a,b,c or a file of lines")
    add("--json", type=path_argument, metavar="FILE", help="also write the result to this file")
    add("--table", type=table_argument, metavar="FILE", help="also write a row for each image: .parquet or .csv")
    add("--report", type=path_argument, metavar="DIR", help="also write a web page: DIR/index.html")
    add_device(parser)


def prepare(options: Namespace, stop: StopRequest) -> Callable[[World], None]:
    """Measure accuracy, loss and calibration of checkpoints or published weights.

    Checks that checkpoints and data exist, and returns the validation of a rank.
    """
    for path in options.checkpoint:
        # Later code downloads published models and models of the Hub, and has the address of a published file (.pth).
        is_known = str(path).startswith((HUB_PREFIX, "seresnext", "legacy_seresnext")) or path.suffix == ".pth"
        if not is_known and not os.path.lexists(path):
            raise CheckpointError(f"{path} cannot be opened: no such file; give one with --checkpoint FILE")
    if options.data is not None:
        check_data_folder(options.data)
    for name in ("table", "report"):
        if getattr(options, name) is not None and len(options.checkpoint) > 1:
            raise UsageError(f"--{name} is for one checkpoint; write the {name} of each with a command of its own")
    for name in ("json", "table"):
        if path := getattr(options, name):
            check_output_file(path, f"--{name}")
    if options.table and options.table.suffix == ".parquet":
        require_extra("report", "pyarrow")
    if options.report is not None:
        check_report(options.report, "--report")
    return partial(_validate, options)


def _validate(options: Namespace, world: World) -> None:
    from seresnext.evaluation.table import write_table
    from seresnext.run.validate import validate

    reports = []
    for path in options.checkpoint:
        validation = validate(path, world, options)
        reports.append(validation.to_json())
        if options.table and world.is_first:
            write_table(validation.table(), options.table)
        if options.json and world.is_first and len(reports) == len(options.checkpoint):
            write_json(options.json, reports if len(reports) > 1 else reports[0])
        if options.report:  # The last, because the page reads images again, and fails if one is gone.
            write_page(validation, options.report, world)


def report_arguments(parser: Parser) -> None:
    """Declare the arguments of `report`."""
    parser.epilog = "`seresnext validate --report DIR` writes the page for other weights, images and settings."
    add = parser.add_argument
    add("run", type=path_argument, metavar="RUN", help="the folder of a run")
    add("--output", type=path_argument, metavar="DIR", help="the folder of the page (default: RUN/report)")
    add("--attach", action="store_true", help="also send the page to the trackers of the run (logging.sinks)")
    add("--data", type=text_argument, metavar="DIR", help="the folder with the splits (default: as in training)")
    add_device(parser)


def report(options: Namespace, stop: StopRequest) -> Callable[[World], None]:
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

    write_page(validate(run, world, Namespace(data=data)), folder, world)
    if attach and world.is_first:
        tracker.attach(run, folder)


def write_page(validation: Validation, folder: Path, world: World) -> None:
    """Write the report on rank 0, and print the path."""
    from seresnext.report.page import write_report

    if world.is_first:
        print(f"report: {write_report(validation, folder, world.device)}")
