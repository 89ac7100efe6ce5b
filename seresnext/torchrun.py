"""`python -m seresnext.torchrun`: torchrun with the same arguments, and a short end.

After Ctrl-C torchrun prints a traceback, although all workers have saved. After the failure of a worker torchrun prints
a box of text and ends with 1. This program prints neither. After a signal the exit code is 128 plus the number of the
signal, as in shells (130 for Ctrl-C). After a failure the exit code is the code of the worker that failed first. The
worker has printed the reason.

On several machines torch would wait for a lost machine of the rendezvous for 15 minutes, and print a traceback. This
program waits as long as `--rdzv-conf=read_timeout=SECONDS` promises, prints one line, and ends with 1.
"""

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from seresnext.errors import Failure
from seresnext.process.exit import exit_code_of
from seresnext.process.packages import require_packages

_BY_SIGNAL = 128
_READ_TIMEOUT = 60  # seconds; the default of torch's `--rdzv-conf=read_timeout=SECONDS`
_CHECK_EVERY = 1.0  # seconds
_EXIT_BARRIER = 15.0  # seconds between the ends of two machines; all processes of a run end at the same time
_AGENT_LOGGER = "torch.distributed.elastic.agent.server.api"
# Lines that torchrun logs for each worker when one worker fails. The worker has printed the reason.
_LOGGER, _REPETITIONS = "torch.distributed.elastic.multiprocessing.api", ("Sending process", "failed (exitcode")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun and return the exit code."""
    return exit_code_of(partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> None:
    """Run torchrun. Raise a Failure, or SystemExit with the code of a failed worker, which has printed the reason."""
    require_packages()
    # At a lost connection torch logs warnings of 20 lines each.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    logging.getLogger(_LOGGER).addFilter(lambda record: not str(record.msg).startswith(_REPETITIONS))
    place = ""
    try:
        options = parse_args(arguments)
        place = options.rdzv_endpoint or f"{options.master_addr}:{options.master_port}"
        options.signals_to_handle = ",".join(filter(_is_handled, options.signals_to_handle.split(",")))
        if options.nnodes not in ("1", "1:1"):
            _prepare_machine(options.rdzv_conf)
        with TemporaryDirectory(prefix="torchelastic_") as folder:
            if options.log_dir is None and options.redirects == options.tee == "0":
                options.log_dir = folder  # torch would make a folder for logs, and leave the folder empty behind.
            run(options)
    except SignalException as stopped:
        sys.exit(_BY_SIGNAL + stopped.sigval)
    except (RendezvousError, DistError) as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or ["too few machines came in time"])[0]
        raise Failure(
            f"the machines of this run cannot meet at {place} ({reason}); check that machine, and start torchrun on "
            "all machines again, which resumes from the last save"
        ) from None
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        lost = Failure(
            f"rank {rank} was ended by {failure.signal_name()} (SIGKILL may mean that memory ran out); the same "
            "command resumes from the last save"
        )
        lost.exit_code = _BY_SIGNAL - failure.exitcode
        raise lost from None


def _prepare_machine(configuration: str) -> None:
    """Let this torchrun, one of several, admit machines that join later, and notice machines that are gone."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.launcher import api

    # By default all starts share a store. torch 2.14 does not give the address to a machine that joins later
    # (DynamicRendezvousHandler.next_rendezvous).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # A torchrun that a signal ended does not come to the barrier, for which torch waits 300 s and prints a traceback.
    api.LocalElasticAgent = partial(LocalElasticAgent, exit_barrier_timeout=_EXIT_BARRIER)  # pyright: ignore[reportPrivateImportUsage]
    logging.getLogger(_AGENT_LOGGER).addFilter(lambda record: "exit barrier" not in str(record.msg))
    found = re.search(r"\bread_timeout=(\d+)", configuration)
    seconds = int(found[1]) if found else _READ_TIMEOUT
    if sys.platform == "linux":
        threading.Thread(target=_limit_connections, args=(seconds,), name="connections", daemon=True).start()


def _limit_connections(seconds: int) -> NoReturn:
    """Let the TCP connections of this process fail once the other machine has not answered for so many seconds.

    torch can wait for the machine of the rendezvous without a limit (TCPStore::compareSet), until the kernel gives up
    after 15 minutes (tcp_retries2 in tcp(7)). torch gives no access to the connections.
    """
    while True:
        for path in list(Path("/proc/self/fd").iterdir()):
            with suppress(OSError):  # The file may be closed by now.
                if not path.is_socket():
                    continue
                with socket.socket(fileno=os.dup(int(path.name))) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6):
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                            connection.setsockopt(socket.IPPROTO_TCP, option, max(1, seconds // 4))
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)
        time.sleep(_CHECK_EVERY)


def _is_handled(name: str) -> bool:
    """Return whether a signal was not ignored at the start, as SIGHUP is under nohup."""
    number = getattr(signal, name, None)  # torchrun refuses an unknown name.
    return number in (None, signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN


if __name__ == "__main__":
    sys.exit(main())
