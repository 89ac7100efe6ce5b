"""Small files of a run folder: atomic writes, and reads that a hostile file cannot stall."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

_MAX_BYTES = 1 << 20


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new text, never a part. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # Errors of `write` name no file, errors of `open` do.
        raise


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
