"""`python -m seresnext.torchrun`: torchrun with the same arguments, and an end as short as that of its workers.

After Ctrl-C torchrun ends with a traceback, although all workers have saved. After the failure of a worker it ends with
1 and a box of text. This program ends with 128 and the number of the signal that it got (130 for Ctrl-C), as shells
have it, or with the exit code of the worker that failed first. That worker has printed the reason.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from seresnext.errors import UsageError, require_packages

_BY_SIGNAL = 128
_INTERRUPTED = _BY_SIGNAL + signal.SIGINT
# Lines that torchrun logs for each worker at the end of one, which has printed the reason.
_LOGGER, _REPETITIONS = "torch.distributed.elastic.multiprocessing.api", ("Sending process", "failed (exitcode")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun. Returns the exit code."""
    try:
        require_packages()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # An exception would come out of the middle of the import, as whatever error that makes there.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(_INTERRUPTED))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger(_LOGGER).addFilter(lambda record: not str(record.msg).startswith(_REPETITIONS))
    try:
        options = parse_args(arguments)
        options.signals_to_handle = ",".join(filter(_is_heard, options.signals_to_handle.split(",")))
        run(options)
    except SignalException as stopped:
        return _BY_SIGNAL + stopped.sigval
    except KeyboardInterrupt:  # Before there was a worker.
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


def _is_heard(name: str) -> bool:
    """Return whether a signal was not ignored at the start, as SIGHUP is under nohup."""
    number = getattr(signal, name, None)  # A name that is none is torchrun's to refuse.
    return number in (None, signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN


if __name__ == "__main__":
    sys.exit(main())
