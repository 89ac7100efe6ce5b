"""The classes of the 50,000 validation images, read from the packed development kit of ILSVRC 2012."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.readers.tarfiles import Member, members
from seresnext.errors import DataError
from seresnext.files import open_regular

_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SYNSETS = "meta.mat"
# Limits against bombs. The kit unpacks to some MiB, and the truth has 50,000 lines of at most five characters.
_MOST_BYTES = 64 << 20
_MOST_BYTES_OF_SYNSETS = 16 << 20
_MOST_BYTES_OF_TRUTH = 1 << 20


def read_validation_classes(devkit: Path) -> list[str]:
    """Return the WordNet id of each validation image, in the order of the image numbers.

    Raises DataError for a kit that cannot be read, or that has other class numbers than the kit of 2012.
    """
    content = _unpack(devkit)

    def read(offset: int, count: int) -> bytes:
        return content[offset : offset + count]

    found: dict[str, Member] = {}
    for member in members(read, 0, len(content), str(devkit)):
        name = member.name.rpartition("/")[2]
        if name in (_GROUND_TRUTH, _SYNSETS) and found.setdefault(name, member) is not member:
            raise DataError(f"{devkit} holds two files {name}; get ILSVRC2012_devkit_t12.tar.gz again")
    if _GROUND_TRUTH not in found:
        raise DataError(f"{devkit} holds no {_GROUND_TRUTH}; get ILSVRC2012_devkit_t12.tar.gz")
    if found[_GROUND_TRUTH].size > _MOST_BYTES_OF_TRUTH:
        raise DataError(
            f"{devkit}: {_GROUND_TRUTH} has {found[_GROUND_TRUTH].size} bytes, more than the kit's; get the kit again"
        )
    if _SYNSETS in found:
        _check_numbers(read(*found[_SYNSETS][1:3]), devkit)
    wordnet_ids = {str(row.ilsvrc_id): row.wordnet_id for row in imagenet_classes()}
    lines = read(*found[_GROUND_TRUTH][1:3]).decode("ascii", "replace").split()
    for number, line in enumerate(lines, 1):
        if line not in wordnet_ids:
            raise DataError(
                f"{devkit}: {_GROUND_TRUTH}:{number} has {line[:20]!a}, no class from 1 to 1000; get the kit again"
            )
    return [wordnet_ids[line] for line in lines]


def _unpack(devkit: Path) -> bytes:
    try:
        with os.fdopen(open_regular(devkit), "rb") as packed, gzip.open(packed) as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{devkit} cannot be read: {reason}; get ILSVRC2012_devkit_t12.tar.gz") from None
    if len(content) > _MOST_BYTES:
        raise DataError(
            f"{devkit} unpacks to more than {_MOST_BYTES >> 20} MiB, which the development kit does not; get the kit "
            "again"
        )
    return content


def _check_numbers(meta: bytes, devkit: Path) -> None:
    """Raise DataError if the kit's table of classes differs from ours: kits of other years have other numbers."""
    try:
        synsets = read_mat(meta)["synsets"]
        theirs = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, struct.error, zlib.error):
        # A table in an unknown form cannot be compared. The labels come from our own table.
        return
    for row in imagenet_classes():
        if theirs.get(row.ilsvrc_id, row.wordnet_id) != row.wordnet_id:
            raise DataError(
                f"{devkit} is the kit of another year: in {_SYNSETS}, class {row.ilsvrc_id} is {theirs[row.ilsvrc_id]} "
                f"instead of {row.wordnet_id}; get ILSVRC2012_devkit_t12.tar.gz"
            )


# ------------------------------------------------------------------------------------------------ MAT-files
# Version 5 of MathWorks' "MAT-File Format", as far as a table of synsets needs it: structures of texts and numbers.
# scipy reads the whole format, and would be a dependency for one file.

_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_MATRIX, _COMPRESSED = 14, 15
_STRUCTURES, _TEXT = 2, 4
_HEADER = 128


def read_mat(content: bytes) -> dict[str, Any]:
    """Return the variables of a MAT-file: lists of dictionaries for arrays of structures, texts, arrays, numbers.

    Raises ValueError, KeyError, IndexError, struct.error or zlib.error for an unknown form, and ValueError for a file
    that unpacks to more than a table of synsets.
    """
    if content[126:128] != b"IM":
        raise ValueError("not a little-endian MAT-file of version 5")
    unpacked = content[_HEADER:]
    if any(kind == _COMPRESSED for kind, _ in _elements(unpacked)):
        unpacked = _decompressed(unpacked)
    return dict(_matrix(body) for kind, body in _elements(unpacked) if kind == _MATRIX)


def _decompressed(content: bytes) -> bytes:
    """Return the variables of a file. Each variable is compressed alone."""
    parts, room = [], _MOST_BYTES_OF_SYNSETS
    for kind, body in _elements(content):
        if kind == _COMPRESSED:
            parts.append(zlib.decompressobj().decompress(body, room))
            room -= len(parts[-1])
            if room <= 0:
                raise ValueError("more than a table of synsets")
    return b"".join(parts)


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, position)
        if kind >> 16:
            # A short element: kind and size in four bytes, then the content in four bytes.
            if kind >> 16 > 4:
                raise ValueError("a short element of more than four bytes")
            yield kind & 0xFFFF, content[position + 4 : position + 4 + (kind >> 16)]
            position += 8
            continue
        yield kind, content[position + 8 : position + 8 + size]
        position += 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)


def _matrix(content: bytes) -> tuple[str, Any]:
    parts = list(_elements(content))
    if not parts:  # An empty matrix may have no parts.
        return "", np.empty(0)
    flags, shape, name = (body for _, body in parts[:3])
    kind, title = flags[0], name.decode("ascii")
    if kind == _STRUCTURES:
        width = int(np.frombuffer(parts[3][1], "<i4")[0])
        names = parts[4][1]
        fields = [names[i : i + width].partition(b"\0")[0].decode("ascii") for i in range(0, len(names), width)]
        values = [_matrix(body)[1] for _, body in parts[5:]]
        if len(values) != len(fields) * int(np.prod(np.frombuffer(shape, "<i4"))):
            raise ValueError("a structure with a wrong number of values")
        starts = range(0, len(values), max(len(fields), 1))
        return title, [dict(zip(fields, values[start:], strict=False)) for start in starts]
    if kind == _TEXT:
        encoding, body = parts[3] if len(parts) > 3 else (16, b"")
        return title, body.decode(_TEXTS.get(encoding, "latin-1"))
    numbers = np.frombuffer(parts[3][1], _NUMBERS[parts[3][0]])
    return title, numbers[0] if len(numbers) == 1 else numbers
