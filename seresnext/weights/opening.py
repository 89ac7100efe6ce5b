"""Opening of a file of weights, which may be anything."""

import os
from pathlib import Path
from typing import BinaryIO

from seresnext.errors import CheckpointError
from seresnext.files import open_regular
from seresnext.printable import shown_path


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading. Raise CheckpointError if the path is no regular file or cannot be opened."""
    try:
        return os.fdopen(open_regular(path), "rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL character.
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{shown_path(path)} cannot be opened: {reason}") from error
