"""`seresnext verify`: check an export."""

from __future__ import annotations

from argparse import Namespace

from seresnext.arguments import Parser
from seresnext.paths import path_argument
from seresnext.process.packages import require_packages


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="the folder of an export")


def run(options: Namespace) -> None:
    """Run the command."""
    require_packages()
    from seresnext.export.verify import verify
    from seresnext.printable import shown_path

    verified = verify(options.folder)
    print(f"{shown_path(options.folder)}: {verified.manifest.kind}, {verified.manifest.model}")
    print(f"verified: {verified}")
