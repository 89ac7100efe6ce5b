"""Damaged images. A number determines the damage."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda\xdb\xdd\xe0-\xef]")


def _flip_bits(data: bytearray, draws: random.Random) -> None:
    for _ in range(draws.choice((1, 3, 30))):
        data[draws.randrange(2, len(data))] ^= 1 << draws.randrange(8)


def _garbage(data: bytearray, draws: random.Random) -> None:
    start = draws.randrange(2, len(data))
    data[start : start + draws.choice((1, 16, 512, 8192))] = draws.randbytes(draws.choice((1, 16, 512, 8192)))


def _cut_out(data: bytearray, draws: random.Random) -> None:
    start = draws.randrange(2, len(data))
    del data[start : start + draws.choice((1, 2, 100, 4096, 65536))]


def _insert(data: bytearray, draws: random.Random) -> None:
    start = draws.randrange(2, len(data))
    data[start:start] = draws.randbytes(draws.choice((1, 2, 100, 4096)))


def _zeros(data: bytearray, draws: random.Random) -> None:
    start = draws.randrange(2, len(data))
    stop = min(start + draws.choice((512, 4096, 65536)), len(data))
    data[start:stop] = bytes(stop - start)


def _cut_tail(data: bytearray, draws: random.Random) -> None:
    del data[draws.randrange(2, len(data)) :]


def _cut_tail_and_end(data: bytearray, draws: random.Random) -> None:
    _cut_tail(data, draws)
    data += b"\xff\xd9"


def _segment(data: bytearray, draws: random.Random) -> None:
    """Change bytes in the head of a segment or just behind it: a table, a frame, a scan, a length."""
    starts = [match.start() for match in _SEGMENT.finditer(data)]
    start = draws.choice(starts)
    for _ in range(draws.choice((1, 1, 4))):
        place = start + draws.randrange(1, draws.choice((6, 24, 80)))
        if place < len(data):
            data[place] = draws.choice((draws.randrange(256), data[place] ^ 1 << draws.randrange(8)))


def _drop_segment(data: bytearray, draws: random.Random) -> None:
    start = draws.choice([match.start() for match in _SEGMENT.finditer(data)])
    del data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4])]


def _marker(data: bytearray, draws: random.Random) -> None:
    """Write a marker at any place."""
    start = draws.randrange(2, len(data))
    data[start : start + 2] = b"\xff" + bytes([draws.randrange(1, 256)])


KINDS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_bits, _garbage, _cut_out, _insert, _zeros, _cut_tail, _cut_tail_and_end, _segment, _drop_segment, _marker,
)  # fmt: skip


def damaged(originals: Sequence[bytes], number: int, seed: int = 0) -> tuple[str, bytes]:
    """Return the kind of damage and the bytes of damaged image `number`: all kinds in turn, of a drawn original."""
    draws = random.Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    data = bytearray(draws.choice(originals))
    kind(data, draws)
    return kind.__name__.strip("_"), bytes(data)
