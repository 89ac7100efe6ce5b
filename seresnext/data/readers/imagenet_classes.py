"""The 1,000 classes of ImageNet-1k: facts of the challenge, from the table imagenet_classes.tsv beside this module."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple


class ImagenetClass(NamedTuple):
    """A class: its WordNet id, its number in the challenge's files (ILSVRC2012_ID, 1 to 1000), and its names."""

    wordnet_id: str
    ilsvrc_id: int
    names: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[ImagenetClass, ...]:
    """All classes, sorted by WordNet id: a label is the place of its class here, never its ILSVRC2012_ID."""
    text = (files("seresnext.data.readers") / "imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple(ImagenetClass(wordnet_id, int(number), tuple(names.split(", "))) for wordnet_id, number, names in rows)
