"""Opening a regular file, and reading a piece of an open file without moving a position."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: str | Path) -> int:
    """Open a file for reading and return the descriptor. Raises OSError, also for a folder, a pipe or a device.

    An ordinary open of a pipe waits for a writer, and a device may have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a file", str(path))
    return descriptor


def read_piece(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, fewer where it ends. No position is moved. Raises OSError."""
    data = os.pread(descriptor, size, offset)
    # One call gives less than asked for on some network file systems, and never more than 2 GiB.
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data
