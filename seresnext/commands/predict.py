"""`seresnext predict`: classes and features of images."""

from argparse import Namespace

from seresnext.arguments import Parser, add_device, count_argument, workers_argument
from seresnext.paths import path_argument, text_argument


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = "docs/predict.md has examples and the formats."
    add = parser.add_argument
    images = "an image, a folder (images at any depth), a quoted pattern, or - for a list of paths on standard input"
    files = "a checkpoint, a run folder, a published .pth, the name of a model, or hf-hub:ORG/NAME"
    add("images", type=_not_address, nargs="+", metavar="PATH", help=images)
    add("--checkpoint", type=_not_address, required=True, metavar="FILE", help=files)
    add("--top", type=count_argument, default=5, metavar="N", help="the number of classes (default: 5)")
    add("--format", choices=("table", "jsonl", "csv", "parquet"), help="default: the ending of --output, else table")
    add("--output", type=path_argument, metavar="FILE", help="a file in place of standard output")
    add("--features", type=path_argument, metavar="FILE", help="also write features: float32 N C; .npy or .parquet")
    add("--stage", choices=("layer1", "layer2", "layer3", "layer4"), help="default: the input of the classifier")
    add("--batch-size", type=count_argument, metavar="N", help="images of one forward pass")
    add("--workers", type=workers_argument, metavar="N", help="loader workers (default: up to 4)")
    add("--max-pixels", type=count_argument, metavar="N", help="a larger image is bad (default: as in training)")
    add_device(parser)


def run(options: Namespace) -> None:
    """Classify images with a trained or published model."""
    from seresnext.run.predict import predict

    predict(options)


def _not_address(text: str) -> str:
    path_argument(text)
    return text_argument(text)
