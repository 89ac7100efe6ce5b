"""`seresnext models`: print the table of the models."""

from __future__ import annotations

from argparse import Namespace

from seresnext.arguments import Parser
from seresnext.process.packages import require_packages


def add_arguments(parser: Parser) -> None:
    """Declare no arguments."""


def run(options: Namespace) -> None:
    """Print the table."""
    require_packages()
    from seresnext.models.counting import print_models

    print_models()
