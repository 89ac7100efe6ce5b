"""torchrun, as the tests start it."""

import sys

# Its own entry point, without looking for garbage in what it imports and leaves: it starts and ends a second sooner.
_START = "import atexit, gc; gc.disable(); atexit.register(gc.freeze); from torch.distributed.run import main; main()"
TORCHRUN = (sys.executable, "-c", _START)
