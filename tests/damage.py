"""Damage to files."""

from pathlib import Path


def flip_bit(path: Path, place: int, bit: int = 0) -> None:
    """Flip a bit of the byte at a place of a file, in place. A negative place counts from the end."""
    with path.open("r+b") as file:
        file.seek(place, 2 if place < 0 else 0)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1 << bit]))
