"""Opening of a file of weights, which may be anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from seresnext.errors import CheckpointError
from seresnext.files import NotRegularError, open_regular
from seresnext.printable import shown_path


class UnreadableError(CheckpointError):
    """A file that the system does not let this process read. The content may be good."""


@contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading in a block.

    Raise UnreadableError if the system refuses, also a read in the block, and CheckpointError if the path is no regular
    file or has a NUL character.
    """
    try:
        descriptor = open_regular(path)
    except (NotRegularError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{shown_path(path)} cannot be opened: {reason}; give another path") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UnreadableError:
    return UnreadableError(f"{shown_path(path)} cannot be read: {error.strerror}; give another path")
