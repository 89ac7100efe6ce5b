"""Measure a checkpoint on a validation split; see `python validate.py --help` and README.md."""

import sys

from seresnext.cli import validate_main

if __name__ == "__main__":
    sys.exit(validate_main())
