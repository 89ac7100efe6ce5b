"""Small photographs for tests of data as people have them."""

from pathlib import Path

import numpy as np
from encoded_images import encoded
from PIL import Image

from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.data.readers.photos import PhotoReader


def photo(seed: int, format: str = "JPEG", size: int = 12, **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return encoded(Image.fromarray(pixels), format, **options)


def make(root: Path, *files: str) -> Path:
    """Write photos of different content, as JPEG whatever the ending. A name with `=N` has the content of number N."""
    for number, file in enumerate(files):
        name, _, content = file.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(int(content) if content else 1000 + number))
    return root


def names(root: Path, split: str, cache: Path, **choice) -> list[str]:
    reader = PhotoReader(root, split, PhotoChoice(**choice), cache)
    return [reader.name(index) for index in range(len(reader))]
