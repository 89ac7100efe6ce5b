"""Small photographs for tests of data as people have them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.data.readers.photos import PhotoReader


def photo(seed: int, format: str = "JPEG", size: int = 12) -> bytes:
    """Return the bytes of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format)
    return data.getvalue()


def make(root: Path, *files: str) -> Path:
    """Write photos of different content, as JPEG whatever the ending. A name with `=N` has the content of number N."""
    for number, file in enumerate(files):
        name, _, content = file.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(int(content) if content else 1000 + number))
    return root


def names(root: Path, split: str, cache: Path, **choice) -> list[str]:
    """Return the names of the photos of a split."""
    reader = PhotoReader(root, split, PhotoChoice(**choice), cache)
    return [reader.name(index) for index in range(len(reader))]
