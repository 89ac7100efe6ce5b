"""Train a model by a recipe; see `python train.py --help` and README.md."""

import gc

from seresnext.process.exit import ProcessEnd, replace_closed_streams
from seresnext.process.signals import die_with_launcher, ignore_signals
from seresnext.process.stop_request import StopRequest

if __name__ == "__main__":
    die_with_launcher()
    gc.disable()  # Until training begins: a quarter of the start went into looking through what is imported and stays.
    replace_closed_streams()
    end = ProcessEnd()
    with StopRequest() as stop:
        try:
            # Imported here, since the import takes seconds: `stop` receives signals already.
            from seresnext.cli import train_main

            code = train_main(stop=stop)
        except KeyboardInterrupt:
            code = 130
        ignore_signals()
    end.exit(code)
