"""Measure a checkpoint on a validation split; see `python validate.py --help` and README.md."""

import gc

from seresnext.process.exit import ProcessEnd, replace_closed_streams
from seresnext.process.signals import die_with_launcher

if __name__ == "__main__":
    die_with_launcher()
    gc.disable()  # Until the images come, as in train.py.
    replace_closed_streams()
    end = ProcessEnd()
    try:
        from seresnext.cli import validate_main

        code = validate_main()
    except KeyboardInterrupt:
        code = 130
    end.exit(code)
