"""Opening of a file of weights, which may be anything."""

import os
from io import BufferedReader
from pathlib import Path

from seresnext.errors import CheckpointError
from seresnext.files import NotRegularError, open_regular
from seresnext.printable import shown_path


class UnreadableError(CheckpointError):
    """A file that the system does not let this process read. The content may be good."""


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raise UnreadableError if the system refuses, CheckpointError if the path is no regular file or has a NUL character.
    """
    try:
        return os.fdopen(open_regular(path), "rb")
    except (NotRegularError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{shown_path(path)} cannot be opened: {reason}; give another path") from error
    except OSError as error:
        raise UnreadableError(f"{shown_path(path)} cannot be read: {error.strerror}; give another path") from error
