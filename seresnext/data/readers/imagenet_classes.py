"""The 1,000 classes of ImageNet-1k, from the table imagenet_classes.tsv in this folder."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple


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
