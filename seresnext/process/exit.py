"""The end of a process: exit codes, standard streams that may be gone, the error file of torchrun."""

import atexit
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from seresnext.errors import Failure, for_terminal
from seresnext.files import write_atomically

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended, as in shells

_UNWRITTEN = 120  # Python's exit code for output that could not be written.
_STREAMS = ("standard input", "standard output", "standard error")


def write_error_file(message: str) -> None:
    """Write the message of a failure to the error file that torchrun reads, if torchrun started this process.

    The box that torchrun prints at the end then shows the message instead of `<N/A>`.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            write_atomically(Path(path), json.dumps({"message": {"message": message, "extraInfo": details}}))


def replace_closed_streams() -> None:
    """Replace the standard streams by streams that print without errors. Call this before the first output or file.

    A stream that was closed (`>&-`) drops all output. If the stream stayed closed, the next file that the command
    opens, perhaps a checkpoint, would get the number of the stream, and printed text would go into that file. After
    the reader of a pipe has gone (`| head`), the command finishes without output. Characters that a terminal cannot
    print become escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # `open` takes the lowest free number, which is this number.
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
        stream = getattr(sys, name)
        if number and stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            raw = _LosablePipe(number, "w", closefd=False)
            buffer = raw if stream.write_through else io.BufferedWriter(raw)  # `python -u` switches buffers off.
            options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", **options))  # pyright: ignore[reportArgumentType]


class _LosablePipe(io.FileIO):
    """A file that drops writes to a pipe without a reader. The error of another failed write names the stream."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, _STREAMS[self.fileno()]) from None


class ProcessEnd:
    """The end of a process without the interpreter's teardown.

    The teardown kills a thread that waits inside torch, and C++ then aborts ("terminate called without an active
    exception"), so torchrun would report a finished run as lost. The last exit handler therefore ends the process,
    after threads have been joined and other libraries have cleaned up. Create this object before torch is imported:
    the handler that is registered first is called last.
    """

    def __init__(self) -> None:
        self._code = 1  # for an unexpected exception
        atexit.register(self._end)

    def exit(self, code: int) -> NoReturn:
        """End this process with a code, like `sys.exit`."""
        self._code = code
        sys.exit(code)

    def _end(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                self._code = self._code or _UNWRITTEN
        os._exit(self._code)


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and exit with `exit_code_of`."""
    replace_closed_streams()
    sys.exit(exit_code_of(main))


def exit_code_of(main: Callable[[], None], interrupted: str = "interrupted") -> int:
    """Run a program of one process and return the exit code: 0, the code of a failure, or 130 after Ctrl-C.

    Print the message of a failure. After Ctrl-C, print `interrupted`. If standard output cannot be written (a full
    disk), print one line and return 120.
    """
    interrupts: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, remember)
    code = 0
    try:
        try:
            main()
        except SystemExit as end:  # From argparse.
            code = int(end.code or 0)
        except Failure as failure:
            if interrupts:
                raise
            print(f"error: {for_terminal(failure)}", file=sys.stderr)
            code = failure.exit_code
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if interrupts or isinstance(error, KeyboardInterrupt):  # An interrupted import can raise any error.
            print(interrupted, file=sys.stderr)
            return INTERRUPTED
        if not isinstance(error, OSError) or error.filename != _STREAMS[1]:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # The interpreter flushes the stream once more at the end.
        print(f"error: {error.filename} cannot be written: {error.strerror}; redirect the output", file=sys.stderr)
        return _UNWRITTEN
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)
    return code
