"""The end of a process: exit codes, standard streams that can be lost, the error file of torchrun."""

from __future__ import annotations

import atexit
import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from seresnext.errors import Failure
from seresnext.printable import for_terminal


def write_error_file(message: str) -> None:
    """Write the message of a failure to the error file that torchrun reads, if torchrun started this process.

    The box that torchrun prints at the end then shows the message, not `<N/A>`.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        temporary = Path(f"{path}.{time.monotonic_ns()}")  # torchrun fails on a part of a file.
        with suppress(OSError):
            temporary.write_text(json.dumps({"message": {"message": message, "extraInfo": details}}))
            temporary.replace(path)


_UNWRITTEN = 120  # The exit code of Python for output that could not be written.


_STREAMS = ("standard input", "standard output", "standard error")


def replace_closed_streams() -> None:
    """Replace the standard streams by streams that print without errors. Call this before any output, and before files.

    A stream that was closed (`>&-`) drops all output. With the stream still closed, the next file that the command
    opens, perhaps a checkpoint, would get the number of the stream, and printed text would go into that file. After a
    pipe was closed (`| head`), the command finishes without output. Characters that a terminal cannot print become
    escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It takes the lowest number that is free: this one.
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
        stream = getattr(sys, name)
        if number and stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            raw = _LosablePipe(number, "w", closefd=False)
            is_buffered = not stream.write_through  # `python -u` switches buffers off.
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    io.BufferedWriter(raw) if is_buffered else raw,  # pyright: ignore[reportArgumentType]
                    stream.encoding,
                    "backslashreplace",
                    line_buffering=stream.line_buffering,
                    write_through=not is_buffered,
                ),
            )


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
    """The end of a process that spares it the interpreter's teardown.

    That kills a thread which waits inside torch at the moment, and C++ answers by aborting ("terminate called without
    an active exception"): torchrun would take a run for lost that is done. So the last of all functions that the
    interpreter calls at exit ends the process itself, when threads were waited for and other libraries have cleaned
    up. Make it before torch is imported, since the first to be registered is the last to be called.
    """

    def __init__(self) -> None:
        self._code = 1  # What an exception that nobody expected ends with.
        atexit.register(self._end)

    def exit(self, code: int) -> NoReturn:
        """End this process with a code; as `sys.exit`."""
        self._code = code
        sys.exit(code)

    def _end(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                self._code = self._code or _UNWRITTEN
        os._exit(self._code)


def run_script(main: Callable[[], None], interrupted: str = "interrupted") -> NoReturn:
    """Run a script's `main` and exit: with 0, a failure's message and code, or `interrupted` and 130 after Ctrl-C.

    If standard output cannot be written, as on a full disk, exit with 120 and one line.
    """
    replace_closed_streams()
    code: int | str | None = 0
    try:
        try:
            main()
        except Failure as failure:
            print(f"error: {for_terminal(failure)}", file=sys.stderr)
            code = failure.exit_code
        except KeyboardInterrupt:
            print(interrupted, file=sys.stderr)
            code = 130
        except SystemExit as end:  # From argparse.
            code = end.code
        sys.stdout.flush()
    except OSError as error:
        if error.filename != _STREAMS[1]:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # The interpreter flushes the stream once more at the end.
        print(f"error: {error.filename} cannot be written: {error.strerror}; make room or redirect it", file=sys.stderr)
        code = _UNWRITTEN
    sys.exit(code)
