"""Opening a file of weights that may be anything."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from seresnext.errors import CheckpointError
from seresnext.weights.names import shown_path


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises CheckpointError if there is none, or if it is a folder, a pipe or a device.

    A link is followed: download caches are full of them, and what counts is what it leads to.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL character.
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{shown_path(path)} cannot be opened: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{shown_path(path)} is not a file of weights: it is not a regular file")
    return os.fdopen(descriptor, "rb")
