"""Regular files, read in pieces at offsets. No descriptor stays open, so processes share none."""

import io
import os
from pathlib import Path

from seresnext.errors import DataError
from seresnext.files import open_regular

LARGEST_IMAGE = 512 << 20
"""Most bytes of an encoded image that are read: the size of the largest image that Pillow opens, uncompressed."""


def read_image(path: str) -> bytes:
    """Return the bytes of an image file. Raises OSError, and DataError for a file that is too large."""
    # Without pathlib and buffering, which would take as long as the read itself.
    with io.FileIO(open_regular(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_IMAGE:
            raise DataError(f"{path} has {size} bytes, more than {LARGEST_IMAGE}; remove the file")
        return file.readall()


def read_piece(descriptor: int, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on, fewer at the end of the file. Raises OSError."""
    data = os.pread(descriptor, size, offset)
    # One call gives fewer bytes on some network file systems, and never more than 2 GiB.
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def read_at(path: str | Path, offset: int, size: int, expected: tuple[int, int] | None = None) -> bytes:
    """Open a file, and return `size` bytes from `offset` on, fewer at the end of the file.

    Raises OSError, also when the file has not the `expected` size in bytes and modification time in nanoseconds.
    """
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        if expected is not None and (status.st_size, status.st_mtime_ns) != expected:
            raise OSError(0, "it has changed since its index was read", str(path))
        return read_piece(descriptor, offset, size)
    finally:
        os.close(descriptor)
