"""Train a model by a recipe; see `python train.py --help` and README.md."""

import sys

from seresnext.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
