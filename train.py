"""Train a model by a recipe; see `python train.py --help` and README.md."""

import sys

if __name__ == "__main__":
    try:
        # Here, so that Ctrl-C during the seconds that importing torch takes ends without a traceback, too.
        from seresnext.cli import train_main

        sys.exit(train_main())
    except KeyboardInterrupt:
        sys.exit(130)
