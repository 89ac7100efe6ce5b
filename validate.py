"""Measure a checkpoint on a validation split; see `python validate.py --help` and README.md."""

import gc
import os
import signal

from seresnext.errors import ProcessEnd, replace_closed_streams
from seresnext.signals import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()
    gc.disable()  # Until the images come, as in train.py.
    replace_closed_streams()
    end = ProcessEnd()
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        # In the seconds that importing torch takes, an exception would come out of the middle of it, as whatever error
        # that makes there.
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from seresnext.cli import validate_main

    gc.freeze()
    signal.signal(signal.SIGINT, interrupt)
    try:
        code = validate_main()
    except KeyboardInterrupt:
        code = 130
    end.exit(code)
