"""`seresnext predict`: classify images with a trained or published model."""

from __future__ import annotations

from argparse import Namespace

from seresnext.arguments import Parser, add_device
from seresnext.paths import path_argument
from seresnext.process.packages import require_packages


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("images", type=path_argument, nargs="+", metavar="IMAGE")
    add("--checkpoint", type=path_argument, required=True, metavar="FILE", help="a checkpoint or a published .pth")
    add("--top", type=int, default=5, metavar="N", help="the number of classes to print (default: 5)")
    add(
        "--features",
        type=path_argument,
        metavar="OUT.npy",
        help="also write the features: float32, N 2048",
    )
    add("--max-pixels", type=int, metavar="N", help="a larger image is an error (default: data.max_pixels of FILE)")
    add_device(parser)


def run(options: Namespace) -> None:
    """Run the command."""
    require_packages()
    from seresnext.run.predict import print_predictions

    print_predictions(options)
