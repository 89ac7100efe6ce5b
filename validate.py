"""Measure a checkpoint on a validation split; see `python validate.py --help` and README.md."""

import sys

from seresnext.errors import replace_closed_streams

if __name__ == "__main__":
    replace_closed_streams()
    try:
        # Here, so that Ctrl-C during the seconds that importing torch takes ends without a traceback, too.
        from seresnext.cli import validate_main

        sys.exit(validate_main())
    except KeyboardInterrupt:
        sys.exit(130)
