"""Regular files, read in pieces at offsets: no position moves, and no two processes share a descriptor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seresnext.files import open_regular

LARGEST_IMAGE = 512 << 20
"""Most bytes of an encoded image that are read: the size of the largest image that Pillow opens, uncompressed."""


def read_piece(descriptor: int, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on, fewer at the end of the file. Raises OSError."""
    data = os.pread(descriptor, size, offset)
    # One call gives fewer bytes on some network file systems, and never more than 2 GiB.
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    """Open a file, and return `size` bytes from `offset` on, fewer at the end of the file. Raises OSError."""
    descriptor = open_regular(path)
    try:
        return read_piece(descriptor, offset, size)
    finally:
        os.close(descriptor)


class ChangedFile(OSError):
    """A file differs from the file that was indexed."""


class FilesAtOffsets:
    """Files that are read at offsets. Each process opens a file at its first read.

    Files whose size and time (nanoseconds) are not the `expected` ones are refused, because the index describes other
    contents.
    """

    def __init__(self, paths: Sequence[Path], expected: Sequence[tuple[int, int]]) -> None:
        self._paths = tuple(paths)
        self._expected = tuple(expected)
        self._process = os.getpid()
        self._descriptors: dict[int, int] = {}

    def read(self, file_id: int, offset: int, size: int) -> bytes:
        """Return bytes of a file. Raises OSError, also for a file that ends too early or has changed."""
        data = read_piece(self._descriptor(file_id), offset, size)
        if len(data) < size:
            raise ChangedFile(0, "it ends too early", str(self._paths[file_id]))
        return data

    def close(self) -> None:
        """Close the descriptors of this process, including descriptors from before a fork."""
        descriptors, self._descriptors = self._descriptors, {}
        for descriptor in descriptors.values():
            os.close(descriptor)

    def _descriptor(self, file_id: int) -> int:
        if self._process != os.getpid():
            self.close()
            self._process = os.getpid()
        found = self._descriptors.get(file_id)
        if found is not None:
            return found
        descriptor = open_regular(self._paths[file_id])
        now = os.fstat(descriptor)
        if (now.st_size, now.st_mtime_ns) != self._expected[file_id]:
            os.close(descriptor)
            raise ChangedFile(0, "it has changed since its index was read", str(self._paths[file_id]))
        # Another thread may have opened the file in the meantime. Then this thread closes the second descriptor.
        first = self._descriptors.setdefault(file_id, descriptor)
        if first != descriptor:
            os.close(descriptor)
        return first

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_expected": self._expected, "_process": -1, "_descriptors": {}}

    def __del__(self) -> None:
        self.close()
