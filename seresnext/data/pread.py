"""Reading a piece of an open file, whatever reads it beside."""

from __future__ import annotations

import os


def read_piece(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, fewer where it ends. No position is moved. Raises OSError."""
    data = os.pread(descriptor, size, offset)
    # One call gives less than asked for on some network file systems, and never more than 2 GiB.
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data
