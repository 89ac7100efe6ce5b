"""What is where in a split: columns of numbers in one memory-mapped file, built once and shared by all processes.

A file of 1.28 million entries opens in milliseconds, costs no Python object per image, and its pages are the kernel's:
loader workers add nothing to them. Where such files are kept and when they are built is told in `index_cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seresnext.errors import DataError

# The file: this mark, the length and CRC-32 of a JSON header (little-endian uint64 each), the header, the columns. The
# header holds the CRC-32 of each column.
_MARK = b"SRXINDEX"
VERSION = 4
"""Version of the file format. An index of another version is built again."""

_ALIGNMENT = 64
_COLUMNS = ("label", "file_id", "offset", "size", "name_ends", "names")
_KINDS = ("|u1", "<u2", "<u4", "<u8")

_NONE = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Contents:
    """What an index says. N images lie in M files; `names` and the last three may be empty where a reader has no need.

    `label`, `file_id`, `offset` and `size` (bytes) have N entries each. `names` (uint8) are all names, one after the
    other, and `name_ends` (N) says where each ends. `files` are M names, `classes` those of the labels. The fingerprint
    identifies the images, independent of place and format of the storage. `notices` are warnings that each start
    prints, such as the number of files that are passed over.
    """

    classes: tuple[str, ...]
    fingerprint: str
    label: np.ndarray
    files: tuple[str, ...] = ()
    file_id: np.ndarray = field(default_factory=lambda: _NONE)
    offset: np.ndarray = field(default_factory=lambda: _NONE)
    size: np.ndarray = field(default_factory=lambda: _NONE)
    names: np.ndarray = field(default_factory=lambda: _NONE)
    name_ends: np.ndarray = field(default_factory=lambda: _NONE)
    notices: tuple[str, ...] = ()


class NotAnIndex(Exception):
    """A file is missing, damaged, or of another version: it has to be built anew. Never seen by the user."""


@dataclass(frozen=True)
class Index(Contents):
    """An open index: its arrays are views of the file. It travels to another process as its path."""

    path: Path = Path()
    digest: str = ""

    def __len__(self) -> int:
        return len(self.label)

    def stored_name(self, index: int) -> str:
        """The name of an image. Only for an index with names."""
        start = int(self.name_ends[index - 1]) if index else 0
        return os.fsdecode(self.names[start : int(self.name_ends[index])].tobytes())

    def __reduce__(self) -> tuple[Callable[[Path, str], Index], tuple[Path, str]]:
        return _reopen, (self.path, self.digest)

    @classmethod
    def open(cls, path: Path) -> Index:
        """Map an index file into memory. Raises NotAnIndex when it is none, or not as it was written.

        All of it is read for that: a bit that flipped in a label would train with the label of another class.
        """
        try:
            raw = np.asarray(np.memmap(path, np.uint8, "r"))
            start = len(_MARK) + 16
            if raw[: len(_MARK)].tobytes() != _MARK:
                raise NotAnIndex(f"{path} does not begin as an index")
            length, checksum = (int(word) for word in np.frombuffer(raw[len(_MARK) : start].tobytes(), "<u8"))
            text = raw[start : start + length].tobytes()
            if len(text) != length or zlib.crc32(text) != checksum:
                raise NotAnIndex(f"{path} has a damaged header")
            header = json.loads(text)
            if header["version"] != VERSION or header["bytes"] != len(raw):
                raise NotAnIndex(f"{path} is of another version, or cut off")
            columns = {name: _column(raw, name, *where) for name, *where in header["columns"]}
            classes, files, notices = (tuple(header[name]) for name in ("classes", "files", "notices"))
            digest, fingerprint = header["digest"], header["fingerprint"]
            if not all(isinstance(text, str) for text in (*classes, *files, *notices, digest, fingerprint)):
                raise ValueError("a name is no text")
            for name in (*classes, *files):
                os.fsencode(name)  # Raises ValueError for a name that no file can have.
            _check_columns(columns, len(classes), len(files))
        except OSError as error:
            raise NotAnIndex(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValueError: also an empty file.
            raise NotAnIndex(f"{path} is damaged: {error}") from None
        return cls(
            classes=classes,
            files=files,
            fingerprint=fingerprint,
            notices=notices,
            path=path,
            digest=digest,
            **columns,
        )


def _column(raw: np.ndarray, name: str, kind: str, count: int, place: int, checksum: int) -> np.ndarray:
    """A column of a mapped file. Raises ValueError for one that is not in it, of no whole numbers, or damaged."""
    size = count * np.dtype(kind).itemsize if kind in _KINDS else -1
    if not 0 <= place <= place + size <= len(raw):
        raise ValueError("a column lies outside of the file")
    content = raw[place : place + size]
    if zlib.crc32(content.data) != checksum:
        raise ValueError(f"the column {name!r} is not what was written (another checksum)")
    return content.view(kind)


def _check_columns(columns: dict[str, np.ndarray], num_classes: int, num_files: int) -> None:
    """Raise ValueError for numbers that would be looked up where nothing is."""
    if columns.keys() != set(_COLUMNS):
        raise ValueError("other columns")
    if len(columns["names"]) and not len(columns["name_ends"]):
        raise ValueError("names without ends")
    limits = {"label": num_classes, "file_id": num_files, "name_ends": len(columns["names"]) + 1}
    for name, column in columns.items():
        if name != "names" and len(column) not in (0, len(columns["label"])):
            raise ValueError(f"{name} of another length")
        if name in limits and len(column) and not 0 <= int(column.min()) <= int(column.max()) < limits[name]:
            raise ValueError(f"{name} out of range")


def _reopen(path: Path, digest: str) -> Index:
    try:
        index = Index.open(path)
    except NotAnIndex as error:
        raise DataError(f"the index went away or was damaged while it was in use: {error}; start again") from None
    if index.digest != digest:
        raise DataError(f"the index {path} was replaced during the run; start again")
    return index


def digest_of(contents: Contents) -> str:
    """Return the SHA-256 of the contents of an index, equal for two equal listings."""
    facts = [VERSION, contents.fingerprint, contents.classes, contents.files, contents.notices]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, column in _narrow(contents).items():
        digest.update(f"\0{name} {column.dtype.str} {len(column)}\0".encode())
        digest.update(column.data)
    return digest.hexdigest()


def _narrow(contents: Contents) -> dict[str, np.ndarray]:
    """Return the columns, each with the smallest type for the numbers of the column."""
    columns: dict[str, np.ndarray] = {}
    for name in _COLUMNS:
        column: np.ndarray = getattr(contents, name)
        kind = np.min_scalar_type(int(column.max())) if len(column) else np.dtype(np.uint8)
        columns[name] = np.ascontiguousarray(column, kind.newbyteorder("<"))
    return columns


def write_index(path: Path, contents: Contents) -> None:
    """Write an index file. A write that fails leaves no part of the file under `path`."""
    columns, digest = _narrow(contents), digest_of(contents)
    checksums = {name: zlib.crc32(column.data) for name, column in columns.items()}

    def header(first: int) -> tuple[bytes, int]:
        table, place = [], first
        for name, column in columns.items():
            place = -(-place // _ALIGNMENT) * _ALIGNMENT
            table.append((name, column.dtype.str, len(column), place, checksums[name]))
            place += column.nbytes
        facts = {"version": VERSION, "bytes": place, "columns": table, "digest": digest}
        facts |= {"fingerprint": contents.fingerprint, "classes": contents.classes, "files": contents.files}
        facts |= {"notices": contents.notices}
        return json.dumps(facts).encode(), place

    # The header holds places, which begin where it ends: leave room for their digits.
    room = len(_MARK) + 16 + len(header(0)[0]) + 256
    text, total = header(room)
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(_MARK + np.array([len(text), zlib.crc32(text)], "<u8").tobytes() + text)
            for (_, _, _, place, _), column in zip(json.loads(text)["columns"], columns.values(), strict=True):
                file.seek(place)
                file.write(column.data)
            file.truncate(total)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def fingerprint_of(classes: Sequence[str], counts: np.ndarray, name_ends: np.ndarray, names: bytes) -> str:
    """SHA-256 over class names, the number of images of each class, and all file names in the order of the index.

    Neither folders nor archives come into it: the same images have one fingerprint, however they are stored.
    """
    digest = hashlib.sha256("\0".join(classes).encode("utf-8", "surrogateescape"))
    for column in (counts, name_ends):
        digest.update(column.astype("<i8").tobytes())
    digest.update(names)
    return digest.hexdigest()
