"""Files that may be anything: reads that cannot stall, and writes that leave no part."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from seresnext.errors import Failure, UsageError

_MAX_BYTES = 1 << 20  # of a small file


class NotRegularError(OSError):
    """A path that is a folder, a pipe or a device."""


def open_regular(path: str | Path) -> int:
    """Open a file for reading and return the descriptor. Links are followed.

    Raise OSError, and NotRegularError for a folder, a pipe or a device: an ordinary open of a pipe waits for a writer,
    and a device may have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new text, never a part. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # Errors of `write` name no file, errors of `open` do.
        raise
    finally:  # Also after Ctrl-C.
        temporary.unlink(missing_ok=True)


def check_output_file(path: Path, option: str) -> None:
    """Raise UsageError if a file cannot be written, so that long work does not end without a result."""
    place = path.absolute()
    nearest = next(each for each in (place, *place.parents) if os.path.exists(each))  # noqa: PTH110 (raises nothing)
    written = place.parent if place.is_file() else nearest  # A file is replaced, a device is not.
    if nearest.is_dir() == (nearest == place) or not os.access(written, os.W_OK):
        raise UsageError(f"{path} cannot be written; choose another file with {option}")


def read_small_json(path: Path) -> Any:
    """Return the content of a JSON file, or None for an unreadable file.

    Unreadable are files over 1 MiB, devices, pipes (which may have no end) and deeply nested content.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            return None
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def write_json(path: Path, content: Any, option: str = "--json") -> None:
    """Write the file that an option of a command names. A device such as /dev/stdout is not replaced. Raise Failure."""
    text = json.dumps(content, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or not path.exists():
            write_atomically(path, text)
        else:
            path.write_text(text)
    except OSError as error:
        raise Failure(f"{path} cannot be written ({error.strerror}); choose another file with {option}") from None
