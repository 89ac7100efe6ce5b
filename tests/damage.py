"""Damage to files, for the tests of what notices it."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path, position: int) -> None:
    """Flip the lowest bit of the byte at a position, which may count from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
