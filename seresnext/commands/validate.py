"""`seresnext validate`: measure a checkpoint on a validation split."""

from __future__ import annotations

import os
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING

from seresnext.arguments import (
    Parser,
    add_device,
    count_argument,
    share_argument,
    side_argument,
    table_argument,
    workers_argument,
)
from seresnext.commands import report
from seresnext.errors import CheckpointError, UsageError
from seresnext.files import check_output_file, write_json
from seresnext.paths import HUB_PREFIX, check_data_folder, path_argument, text_argument
from seresnext.process.packages import require_extra
from seresnext.process.stop_request import StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from seresnext.distributed import World


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
        report.check_report(options.report, "--report")
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
            report.write(validation, options.report, world)
