"""`python -m seresnext.torchrun`: torchrun with the same arguments, and a short end.

After Ctrl-C torchrun prints a traceback, although all workers have saved. After the failure of a worker torchrun prints
a box of text and ends with 1. This program prints neither. After a signal the exit code is 128 plus the number of the
signal, as in shells (130 for Ctrl-C). After a failure the exit code is the code of the worker that failed first. The
worker has printed the reason.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from seresnext.errors import UsageError
from seresnext.process.packages import require_packages

_BY_SIGNAL = 128
_INTERRUPTED = _BY_SIGNAL + signal.SIGINT
# Lines that torchrun logs for each worker when one worker fails. The worker has printed the reason.
_LOGGER, _REPETITIONS = "torch.distributed.elastic.multiprocessing.api", ("Sending process", "failed (exitcode")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun and return the exit code."""
    try:
        require_packages()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # KeyboardInterrupt in the middle of an import could appear as another error.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(_INTERRUPTED))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger(_LOGGER).addFilter(lambda record: not str(record.msg).startswith(_REPETITIONS))
    try:
        options = parse_args(arguments)
        options.signals_to_handle = ",".join(filter(_is_handled, options.signals_to_handle.split(",")))
        run(options)
    except SignalException as stopped:
        return _BY_SIGNAL + stopped.sigval
    except KeyboardInterrupt:  # No worker has started yet.
        return _INTERRUPTED
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        print(
            f"error: rank {rank} was ended by {failure.signal_name()} (SIGKILL may mean that memory ran out); the same "
            "command resumes from the last save",
            file=sys.stderr,
        )
        return _BY_SIGNAL - failure.exitcode
    return 0


def _is_handled(name: str) -> bool:
    """Return whether a signal was not ignored at the start, as SIGHUP is under nohup."""
    number = getattr(signal, name, None)  # torchrun refuses an unknown name.
    return number in (None, signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN


if __name__ == "__main__":
    sys.exit(main())
