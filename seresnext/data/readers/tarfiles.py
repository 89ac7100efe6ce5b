"""Tar archives read at offsets: where their members lie, and bytes of files that no process shares a handle of.

Nothing is ever extracted, and no name inside an archive becomes a path on disk. The headers are those of POSIX.1-1988
(ustar), POSIX.1-2001 (pax) and GNU tar, as their manuals and tar(5) describe them. What an archive of images has no use
for is refused with the name of the member: links, devices, sparse files, two members of one name, members cut off.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seresnext.data.readers.pread import open_regular, read_piece
from seresnext.errors import DataError
from seresnext.printable import printable

BLOCK = 512
_ZEROS = bytes(BLOCK)
# Longest header extension that is read; a path has at most 4096 bytes.
_LONGEST_EXTENSION = 1 << 20
_MOST_DIGITS = 20  # of a size; `int` raises ValueError for thousands of digits
# Extensions of one member: a long name, a long size and a comment are three.
_MOST_EXTENSIONS = 8
# How much filling may follow the end of an archive: tar's records are 10 KiB unless told otherwise.
_MOST_FILLING = 16 << 20

LARGEST_IMAGE = 512 << 20
"""Bytes of an encoded image that are read into memory: what the largest that Pillow opens takes uncompressed."""

_REFUSED = {
    b"1": "is a hard link",
    b"2": "is a symbolic link",
    b"3": "is a character device",
    b"4": "is a block device",
    b"6": "is a FIFO",
    b"S": "is a sparse file",
    b"M": "is the continuation of a file from another volume",
    b"V": "is the label of a volume",
}

ReadAt = Callable[[int, int], bytes]
"""`read(offset, count)`: bytes of an archive, fewer than asked for only at its end."""


class Member(NamedTuple):
    """A regular file in an archive: its name, and where its bytes lie in the file that holds the archive.

    `is_plain` says that its name stands in the 512 bytes before it, where `header_name` finds it.
    """

    name: str
    offset: int
    size: int
    is_plain: bool


def members(read: ReadAt, start: int, end: int, archive: str) -> Iterator[Member]:
    """The regular files of the tar archive at `start` to `end` of a file, in the archive's order. Folders are passed.

    Raises DataError naming `archive` and the member that is hostile, odd or cut off.
    """
    position = start
    seen: set[str] = set()
    last = "its first member"
    extension: dict[str, str] = {}
    extensions = 0
    while True:
        block = read(position, BLOCK) if position + BLOCK <= end else b""
        if len(block) < BLOCK:
            raise DataError(f"{archive} ends after {last}, without the mark of its end: it is cut off; get it again")
        if block == _ZEROS:
            _check_end(read, position + BLOCK, end, archive, last)
            return
        if not _checksum_fits(block):
            raise DataError(f"{archive} has a damaged header after {last}; get it again")
        kind = block[156:157]
        name = extension.get("path") or header_name(block)
        where = f"{archive}: member {printable(repr(name))}"
        size = int(extension["size"]) if "size" in extension else _number(block[124:136], where)
        data = position + BLOCK
        if data + size > end:
            raise DataError(f"{where} is cut off: {size} bytes, and {max(end - data, 0)} are there; get it again")
        if kind in (b"L", b"K", b"x", b"g"):
            extensions += 1
            if extensions > _MOST_EXTENSIONS:
                raise DataError(f"{where} has more than {_MOST_EXTENSIONS} header extensions; get the archive again")
            extension = {**extension, **_read_extension(read(data, _extension_size(size, where)), kind, where)}
            position = data + _padded(size)
            continue
        _check_name(name, where)
        if kind in _REFUSED:
            raise DataError(f"{where} {_REFUSED[kind]}; only regular files are read")
        if any(key.startswith("GNU.sparse.") for key in extension):
            raise DataError(f"{where} is a sparse file; only regular files are read")
        is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
        if not is_folder and kind not in (b"0", b"\0"):
            raise DataError(f"{where} is of the unknown type {kind!r}; only regular files are read")
        plain = posixpath.normpath(name)
        if plain in seen:
            raise DataError(f"{where} is there twice; which one is meant cannot be known")
        seen.add(plain)
        last = f"member {printable(repr(name))}"
        if not is_folder:
            yield Member(plain, data, size, is_plain=name == plain and "path" not in extension)
        position = data + (0 if is_folder else _padded(size))
        extension, extensions = {}, 0


def header_name(block: bytes) -> str:
    """The name that a header of 512 bytes gives its member."""
    name = block[:100].partition(b"\0")[0]
    # GNU tar, which marks its headers otherwise, keeps other things where POSIX has the first part of a long name.
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return os.fsdecode(name)


def _checksum_fits(block: bytes) -> bool:
    try:
        stored = int(block[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        return False
    return stored == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(text: bytes, where: str) -> int:
    """A size: octal digits, or big-endian bytes behind a first one of 0x80 (GNU, for 8 GiB and more)."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b" \0")
    if digits.strip(b"01234567"):
        raise DataError(f"{where} has the size {text!r}, which is no number; get the archive again")
    return int(digits or b"0", 8)


def _extension_size(size: int, where: str) -> int:
    if size > _LONGEST_EXTENSION:
        raise DataError(f"{where} has a header extension of {size} bytes; that is no archive of images")
    return size


def _read_extension(content: bytes, kind: bytes, where: str) -> dict[str, str]:
    """What an extension says of the next member: its path, its size, or that it is sparse."""
    if kind == b"L":
        return {"path": os.fsdecode(content.partition(b"\0")[0])}
    if kind == b"K":
        return {}  # Where a link leads: the link itself comes next, and is refused by its name.
    found: dict[str, str] = {}
    start = 0
    while start < len(content):
        digits = content[start : start + 9].partition(b" ")[0]
        end = start + (int(digits) if digits.isdigit() and len(digits) < 9 else 0)
        record = content[start + len(digits) + 1 : end]
        if end > len(content) or not record.endswith(b"\n") or b"=" not in record:
            raise DataError(f"{where} has a damaged header extension; get the archive again")
        key, _, value = record[:-1].partition(b"=")
        found[os.fsdecode(key)] = os.fsdecode(value)
        start = end
    if kind == b"g":
        # Of all members to come; comments are usual, and nothing else has a meaning for more than one file.
        if {"path", "size"} & found.keys():
            raise DataError(f"{where} names all members to come alike; that is no archive of images")
        return {}
    size = found.get("size", "0")
    if not (size.isdecimal() and len(size) <= _MOST_DIGITS):
        raise DataError(f"{where} has the size {size!r:.60}, which no file has; get the archive again")
    return found


def _check_name(name: str, where: str) -> None:
    parts = name.split("/")
    if not name or "\0" in name:
        raise DataError(f"{where} has no usable name")
    if name.startswith("/") or ".." in parts:
        raise DataError(f"{where} points outside of the archive")


def _check_end(read: ReadAt, position: int, end: int, archive: str, last: str) -> None:
    if position + BLOCK > end or read(position, BLOCK) != _ZEROS:
        raise DataError(f"{archive} ends after {last} with half of the mark of its end: it is cut off; get it again")
    if end - position > _MOST_FILLING or any(read(position, end - position)):
        raise DataError(f"{archive} holds more behind its end, after {last}; are there two archives in one file?")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


class ChangedFile(OSError):
    """A file is not the one that its index was built of."""


class FilesAtOffsets:
    """Files that are read at offsets, each opened when a process first needs it.

    A process that was forked opens its own: no handle is shared, and `os.pread` moves no position. Files whose size and
    time (nanoseconds) are not the `expected` ones are refused, so that no index is used for another file.
    """

    def __init__(self, paths: Sequence[Path], expected: Sequence[tuple[int, int]]) -> None:
        self._paths = tuple(paths)
        self._expected = tuple(expected)
        self._process = os.getpid()
        self._descriptors: dict[int, int] = {}

    def read(self, file_id: int, offset: int, size: int) -> bytes:
        """Bytes of a file. Raises OSError, also when it ends before them or has changed."""
        data = read_piece(self._descriptor(file_id), offset, size)
        if len(data) < size:
            raise ChangedFile(0, "it ends too early", str(self._paths[file_id]))
        return data

    def close(self) -> None:
        """Close what this process opened, or inherited by a fork."""
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
        # Another thread may have been first; the handle of the second is given back.
        kept = self._descriptors.setdefault(file_id, descriptor)
        if kept != descriptor:
            os.close(descriptor)
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_expected": self._expected, "_process": -1, "_descriptors": {}}

    def __del__(self) -> None:
        self.close()
