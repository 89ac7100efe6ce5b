"""What a problem with a recipe is, and how such problems are worded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something wrong with `key` (a dotted path) in the light of the keys in `because`."""

    key: str
    message: str
    because: tuple[str, ...] = ()


def one_of(words: list[str]) -> str:
    """`1`, `1 or 2`, `1, 2 or 3`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
