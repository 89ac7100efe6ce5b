"""Opening of regular files, for files that may be anything."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


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
