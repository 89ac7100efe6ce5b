"""`seresnext validate`: measure a checkpoint on a validation split."""

from __future__ import annotations

import os
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING

from seresnext.arguments import Parser, add_device
from seresnext.errors import CheckpointError
from seresnext.paths import check_data_folder, path_argument, text_argument
from seresnext.process.stop_request import StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from seresnext.distributed import World


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = """examples:
  seresnext validate --checkpoint runs/first/checkpoints/best.safetensors
  seresnext validate --checkpoint se_resnext50_32x4d-a260b3a4.pth --data /path/to/imagenet --json result.json

`python validate.py` is the same command. README.md describes checkpoints and published weights, docs/recipe.md the
recipe that a checkpoint has in it."""
    add = parser.add_argument
    add("--checkpoint", required=True, type=path_argument, metavar="FILE", help="a checkpoint or a published .pth")
    add("--data", type=text_argument, metavar="DIR", help="the folder with the splits (default: as in training)")
    add("--split", type=text_argument, metavar="NAME", help="the split (default: as in training, else val)")
    add("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    add("--json", type=path_argument, metavar="FILE", help="also write the result to this file")
    add_device(parser)


def prepare(options: Namespace, stop: StopRequest) -> Callable[[World], None]:
    """Measure top-1 and top-5 accuracy and loss of a checkpoint or of published weights.

    Checks that checkpoint and data exist, and returns the validation of a rank.
    """
    # For a published file (.pth) a later message has the address.
    if not os.path.lexists(options.checkpoint) and options.checkpoint.suffix != ".pth":
        raise CheckpointError(f"{options.checkpoint} cannot be opened: no such file; give one with --checkpoint FILE")
    if options.data is not None:
        check_data_folder(options.data)
    return partial(_validate, options)


def _validate(options: Namespace, world: World) -> None:
    from seresnext.run.validate import validate

    validate(options.checkpoint, world, options.data, options.split, options.weights, options.json)
