"""What a JPEG says of itself before its pixels: size, coding, colours; read from its bytes, not its name."""

from __future__ import annotations

from typing import NamedTuple

MOST_SCANS = 100
"""Of a progressive JPEG, which has ten or so. A scan of few bytes goes over all pixels: a megabyte takes an hour."""

_SOI, _SOS, _ADOBE = 0xD8, 0xDA, 0xEE
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))
# Frames: all codings of ITU-T T.81, table B.1. The three are baseline, extended sequential and progressive Huffman.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_PROGRESSIVE = 0xC2
# Sampling factors of the first component where the others have 1 x 1: 4:4:4, 4:2:2, 4:2:0.
_LUMA_SAMPLINGS = frozenset((0x11, 0x21, 0x22))
# Of the end of a file; what follows the last marker, some programs pad.
_TAIL = 64


class Frame(NamedTuple):
    """The picture of a JPEG. `is_plain`: gray or YCbCr of 8 bits, of an ordinary sampling, of few scans, and whole."""

    width: int
    height: int
    is_plain: bool


def read_frame(data: bytes) -> Frame | None:
    """The frame of a JPEG; None for any other bytes, and for a JPEG whose header is cut off or damaged."""
    if data[:2] != b"\xff\xd8":
        return None
    position, end = 2, len(data) - 9
    width = height = 0
    is_plain = b"\xff\xd9" in data[-_TAIL:]
    while position < end:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF or marker in _STANDALONE:  # A fill byte, or a marker without a length.
            position += 1 if marker == 0xFF else 2
            continue
        if marker == _SOS:
            return Frame(width, height, is_plain) if width and height else None
        start = position + 4
        position += 2 + (data[position + 2] << 8 | data[position + 3])
        if marker in _FRAMES:
            if width:  # A second frame: hierarchical, or nonsense.
                return None
            height = data[start + 1] << 8 | data[start + 2]
            width = data[start + 3] << 8 | data[start + 4]
            is_known = marker in _HUFFMAN_FRAMES and data[start] == 8
            is_plain = is_plain and is_known and _is_usual(data[start + 5 : position])
            is_plain = is_plain and not (marker == _PROGRESSIVE and has_many_scans(data))
        elif marker == _ADOBE and data[start : start + 5] == b"Adobe":
            is_plain = is_plain and data[start + 11 : start + 12] == b"\1"  # 0 is RGB or gray, 2 is YCCK.
    return None


def has_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than `MOST_SCANS` scans. Their mark is nowhere in what is coded."""
    return data.count(b"\xff\xda") > MOST_SCANS


def _is_usual(components: bytes) -> bool:
    """Whether the components of a frame (their number, then 3 bytes each) are gray, or YCbCr sampled as usual."""
    number = components[0]
    if len(components) != 1 + 3 * number:
        return False
    if number == 1:
        return True
    ids, samplings = components[1::3], components[2::3]
    return number == 3 and ids != b"RGB" and samplings[0] in _LUMA_SAMPLINGS and samplings[1:] == b"\x11\x11"
