"""The classes of ImageNet-1k: the table imagenet_classes.tsv, and the classes of the validation images."""

import gzip
import os
import zlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from seresnext.data.readers.tarfiles import members
from seresnext.errors import DataError
from seresnext.files import open_regular

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Limits against bombs. The kit unpacks to some MiB, and 50,000 numbers of four digits are less than one.
_MOST_BYTES, _MOST_BYTES_OF_TRUTH = 64 << 20, 1 << 20


class ImagenetClass(NamedTuple):
    """A class: WordNet id, number in the files of the challenge (ILSVRC2012_ID, 1 to 1000), and names."""

    wordnet_id: str
    ilsvrc_id: int
    names: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[ImagenetClass, ...]:
    """Return all classes, sorted by WordNet id. A label is a position in this tuple, never an ILSVRC2012_ID."""
    text = (files("seresnext.data.readers") / "imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple(ImagenetClass(wordnet_id, int(number), tuple(names.split(", "))) for wordnet_id, number, names in rows)


def read_validation_classes(devkit: Path) -> list[str]:
    """Return the WordNet id of each validation image, in the order of the image numbers.

    `devkit` is the packed development kit of ILSVRC 2012. Raises DataError for a kit that cannot be read.
    """
    content = _unpack(devkit)
    found = [
        member
        for member in members(lambda offset, count: content[offset : offset + count], 0, len(content), str(devkit))
        if member.name.rpartition("/")[2] == _TRUTH and member.size <= _MOST_BYTES_OF_TRUTH
    ]
    if len(found) != 1:
        there = f"{len(found)} files {_TRUTH} of at most 1 MiB"
        raise DataError(f"{devkit} holds {there}, and the kit holds one; get ILSVRC2012_devkit_t12.tar.gz")
    _, offset, size = found[0]
    wordnet_ids = {str(row.ilsvrc_id): row.wordnet_id for row in imagenet_classes()}
    lines = content[offset : offset + size].decode("ascii", "replace").split()
    for number, line in enumerate(lines, 1):
        if line not in wordnet_ids:
            raise DataError(f"{devkit}: {_TRUTH}:{number} has {line[:20]!a}, no class of 1 to 1000; get the kit again")
    return [wordnet_ids[line] for line in lines]


def _unpack(devkit: Path) -> bytes:
    try:
        with os.fdopen(open_regular(devkit), "rb") as packed, gzip.open(packed) as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{devkit} cannot be read: {reason}; get ILSVRC2012_devkit_t12.tar.gz") from None
    if len(content) > _MOST_BYTES:
        raise DataError(f"{devkit} unpacks to more than {_MOST_BYTES >> 20} MiB, unlike the kit; get the kit again")
    return content
