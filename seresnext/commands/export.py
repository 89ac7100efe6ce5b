"""`seresnext export`: write a model for another tool, with the proof that the copy gives the same logits."""

from __future__ import annotations

from argparse import Namespace

from seresnext.arguments import Parser
from seresnext.paths import path_argument, text_argument
from seresnext.process.packages import require_packages


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = """examples:
  seresnext export --checkpoint runs/first --to onnx --output first-onnx
  seresnext export --checkpoint runs/first --to hub --output first-hub --evaluation result.json --push ORG/NAME

docs/export.md describes the kinds, and how other tools load them."""
    add = parser.add_argument
    add("--checkpoint", required=True, type=path_argument, metavar="FILE", help="a run folder, checkpoint or .pth")
    add("--to", required=True, choices=("weights", "hub", "timm", "onnx", "exported", "folded"), help="timm: hub")
    add("--output", required=True, type=path_argument, metavar="DIR", help="a new folder")
    add("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    add("--golden", type=path_argument, metavar="DIR", help="at most 8 images (default: drawn images)")
    add("--evaluation", type=path_argument, metavar="FILE", help="accuracy and temperature: validate's --json FILE")
    add("--push", type=text_argument, metavar="ORG/NAME", help="upload the folder to the Hugging Face Hub")


def run(options: Namespace) -> None:
    """Run the command."""
    require_packages()
    from seresnext.export.create import export

    export(options)
