"""Members of tar archives: name, offset and size.

Nothing is ever extracted, and no name inside an archive becomes a path on disk. The headers are ustar (POSIX.1-1988),
pax (POSIX.1-2001) and GNU tar (see tar(5)). A member that an archive of images does not need is refused by name: a
link, a device, a sparse file, a second member of the same name, a member that is cut off.
"""

import os
import posixpath
from collections.abc import Callable, Iterator
from typing import NamedTuple

from seresnext.errors import DataError

BLOCK = 512
_ZEROS = bytes(BLOCK)
# Most bytes of a header extension; a path has at most 4096 bytes.
_LONGEST_EXTENSION = 1 << 20
_MOST_DIGITS = 20  # Digits of a size; `int` raises ValueError for thousands of digits.
# Header extensions of one member: a long name, a long size and a comment are three.
_MOST_EXTENSIONS = 8
# Zeros after the end of an archive. By default, tar fills up to 10 KiB.
_MOST_PADDING = 16 << 20

_REFUSED = {
    b"1": "is a hard link",
    b"2": "is a symbolic link",
    b"3": "is a character device",
    b"4": "is a block device",
    b"6": "is a FIFO",
    b"S": "is a sparse file",
}

ReadAt = Callable[[int, int], bytes]
"""`read(offset, count)` returns bytes of an archive, fewer than `count` only at the end."""


class Member(NamedTuple):
    """A regular file in an archive: name, and offset and size of the bytes in the archive's file."""

    name: str
    offset: int
    size: int


def members(read: ReadAt, start: int, end: int, archive: str) -> Iterator[Member]:
    """Yield the regular files of the tar archive from `start` to `end` of a file, in order. Folders are skipped.

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
            raise DataError(f"{archive} is cut off after {last}: the end mark is missing; get the archive again")
        if block == _ZEROS:
            _check_end(read, position + BLOCK, end, archive, last)
            return
        if not _checksum_fits(block):
            raise DataError(f"{archive} has a damaged header after {last}; get the archive again")
        kind = block[156:157]
        name = extension.get("path") or header_name(block)
        where = f"{archive}: member {name if len(name) <= 200 else f'{name[:197]}...'!a}"
        size = int(extension["size"]) if "size" in extension else _number(block[124:136], where)
        data = position + BLOCK
        padded = -(-size // BLOCK) * BLOCK
        if data + size > end:
            raise DataError(f"{where} is cut off: {max(end - data, 0)} of {size} bytes; get the archive again")
        if kind in (b"L", b"K", b"x", b"g"):
            extensions += 1
            if extensions > _MOST_EXTENSIONS:
                raise DataError(f"{where} has more than {_MOST_EXTENSIONS} header extensions; get the archive again")
            if size > _LONGEST_EXTENSION:
                raise DataError(f"{where} has a header extension of {size} bytes; give an archive of images")
            extension = {**extension, **_read_extension(read(data, size), kind, where)}
            position = data + padded
            continue
        if not name or "\0" in name:
            raise DataError(f"{where} has no usable name; get the archive again")
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{where} has a name that leads outside of the archive; do not use this archive")
        refused = _REFUSED[b"S"] if any(key.startswith("GNU.sparse.") for key in extension) else _REFUSED.get(kind)
        if refused:
            raise DataError(f"{where} {refused}; make an archive of regular files only")
        is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
        if not is_folder and kind not in (b"0", b"\0"):
            raise DataError(f"{where} is of the unknown type {kind!r}; make an archive of regular files only")
        plain = posixpath.normpath(name)
        if plain in seen:
            raise DataError(f"{where} is there twice; make an archive with one member of each name")
        seen.add(plain)
        last = where.removeprefix(f"{archive}: ")
        if not is_folder:
            yield Member(plain, data, size)
        position = data + (0 if is_folder else padded)
        extension, extensions = {}, 0


def header_name(block: bytes) -> str:
    """Return the name in a member's header of 512 bytes. An extension before the header may have a longer name."""
    name = block[:100].partition(b"\0")[0]
    # POSIX has the first part of a long name at 345. GNU tar has another mark, and other contents there.
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
    """Return a size from octal digits, or from big-endian bytes after 0x80 (GNU, for 8 GiB and more)."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b" \0")
    if digits.strip(b"01234567"):
        raise DataError(f"{where} has the size {text!r}, which is no number; get the archive again")
    return int(digits or b"0", 8)


def _read_extension(content: bytes, kind: bytes, where: str) -> dict[str, str]:
    """Return the settings of the next member in a header extension: path, size, and marks of a sparse file."""
    if kind == b"L":
        return {"path": os.fsdecode(content.partition(b"\0")[0])}
    if kind == b"K":
        return {}  # The target of a link. The next member is the link, which is refused.
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
        # A global extension holds for all later members. Comments are usual; one path or size for all is not.
        if {"path", "size"} & found.keys():
            raise DataError(f"{where} gives all later members the same path or size; give an archive of images")
        return {}
    size = found.get("size", "0")
    if not (size.isdecimal() and len(size) <= _MOST_DIGITS):
        raise DataError(f"{where} has the size {size!r:.60}, which is no size of a file; get the archive again")
    return found


def _check_end(read: ReadAt, position: int, end: int, archive: str, last: str) -> None:
    if position + BLOCK > end or read(position, BLOCK) != _ZEROS:
        raise DataError(f"{archive} is cut off after {last}: half of the end mark is missing; get the archive again")
    if end - position > _MOST_PADDING or any(read(position, end - position)):
        raise DataError(f"{archive} has more data after the end mark, after {last}; give one archive per file")
