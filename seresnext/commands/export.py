"""The commands that write a model for another tool, and that check the copy."""

from argparse import Namespace

from seresnext.arguments import Parser
from seresnext.paths import path_argument, text_argument


def export_arguments(parser: Parser) -> None:
    """Declare the arguments of `export`."""
    parser.epilog = "docs/export.md has examples, the kinds, and how other tools load them."
    add = parser.add_argument
    add("--checkpoint", required=True, type=path_argument, metavar="FILE", help="a run, checkpoint, .pth or name")
    add("--to", required=True, choices=("weights", "hub", "timm", "onnx", "exported", "folded"), help="timm: as hub")
    add("--output", required=True, type=path_argument, metavar="DIR", help="a new folder")
    add("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    add("--golden", type=path_argument, metavar="DIR", help="at most 8 images (default: drawn images)")
    add("--evaluation", type=path_argument, metavar="FILE", help="accuracy and temperature: validate's --json FILE")
    add("--push", type=text_argument, metavar="ORG/NAME", help="upload the folder to the Hugging Face Hub")


def export(options: Namespace) -> None:
    """Write a model for timm, the Hugging Face Hub, ONNX or torch.export, and check the copy."""
    from seresnext.export.create import export

    export(options)


def card_arguments(parser: Parser) -> None:
    """Declare the arguments of `card`."""
    add = parser.add_argument
    add("--checkpoint", required=True, type=path_argument, metavar="FILE", help="a run, checkpoint, .pth or name")
    add("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    add("--evaluation", type=path_argument, metavar="FILE", help="accuracy and temperature: validate's --json FILE")
    add("--output", type=path_argument, metavar="FILE", help="write the card to this file (default: print)")


def card(options: Namespace) -> None:
    """Write the model card of a checkpoint, with the metadata of the Hugging Face Hub."""
    from seresnext.export.create import describe

    describe(options)


def verify_arguments(parser: Parser) -> None:
    """Declare the arguments of `verify`."""
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="the folder of an export")


def verify(options: Namespace) -> None:
    """Check the files of an export, and the logits of its golden images."""
    from seresnext.export.verify import verify
    from seresnext.printable import shown_path

    manifest, result = verify(options.folder)
    print(f"{shown_path(options.folder)}: {manifest.kind}, {manifest.model}\nverified: {result}")
