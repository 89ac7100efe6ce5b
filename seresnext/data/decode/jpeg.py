"""The markers of a JPEG: size, coding, colours, and whether all decoders see the same picture.

Sources: ITU-T T.81, and jdmarker.c and jdphuff.c of libjpeg-turbo for the errors that end a decode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MOST_SCANS = 100
"""Most scans of a progressive JPEG; usual are ten. A scan of few bytes covers all pixels: a megabyte takes an hour."""

_SOS, _DHT, _DRI = 0xDA, 0xC4, 0xDD
_APP0, _APP2, _APP13, _ADOBE = 0xE0, 0xE2, 0xED, 0xEE
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))
# Frames: all codings of ITU-T T.81, table B.1. The three are baseline, extended sequential and progressive Huffman.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_PROGRESSIVE = 0xC2
# Other usual segments: quantization and Huffman tables, data of applications, comments.
_USUAL = frozenset((0xDB, _DHT, *range(_APP0, 0xF0), 0xFE))
# Sampling factors of the first component where the others have 1 x 1: 4:4:4, 4:2:2, 4:2:0.
_LUMA_SAMPLINGS = frozenset((0x11, 0x21, 0x22))
# Bytes at the end of a file that must hold the end mark. Some programs pad the file.
_TAIL = 64
_END = b"\xff\xd9"
_SEQUENTIAL_SCAN = b"\0\x3f\0"  # All 64 coefficients with all bits.
_ALL_BITS = 99  # More than a coefficient has.
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_OTHER_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7]")
_RESTARTS = bytes(range(0xD0, 0xD8))


class Frame(NamedTuple):
    """The picture of a JPEG.

    `is_plain`: gray or YCbCr of 8 bits, of an ordinary sampling, of few scans, and complete. All markers are in order
    from the beginning to the end of the file, and the coded data contain none. All decoders see the same picture then.
    """

    width: int
    height: int
    is_plain: bool


def read_frame(data: bytes) -> Frame | None:
    """Return the frame of a JPEG; None for any other bytes, and for a JPEG without a whole header. Raises nothing."""
    if data[:2] != b"\xff\xd8":
        return None
    width = height = interval = 0
    components, is_progressive = b"", False
    is_plain = _END in data[-_TAIL:]
    for marker, body, end in _segments(data, 2):
        if marker == _SOS:
            if not (width and height):
                return None
            has_all = _has_all_scans if is_progressive else _has_its_scan
            return Frame(width, height, is_plain and has_all(data, body, end, components, interval))
        if marker in _FRAMES:
            if width or len(body) < 6:  # A second frame: hierarchical, or nonsense.
                return None
            height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
            components, is_progressive = body[6:], marker == _PROGRESSIVE
            is_plain = is_plain and marker in _HUFFMAN_FRAMES and body[0] == 8 and _is_usual(body[5], components)
        elif marker == _DRI:
            interval = int.from_bytes(body)
            is_plain = is_plain and len(body) == 2
        elif is_plain:
            is_plain = _is_read_alike(marker, body)
    return None


def has_many_scans(data: bytes) -> bool:
    """Return whether a JPEG has more than `MOST_SCANS` scans. Coded data never contain the mark of a scan."""
    return data.count(b"\xff\xda") > MOST_SCANS


def _segments(data: bytes, position: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker, content and end of the segments from a position on, up to the header of a scan, or to nonsense."""
    last = len(data) - 9
    while position < last and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _STANDALONE:  # A fill byte, or a marker without a length.
            position += 1 if marker == 0xFF else 2
            continue
        start = position + 4
        position += 2 + (data[position + 2] << 8 | data[position + 3])
        if position < start or position > len(data):
            return
        yield marker, data[start:position], position
        if marker == _SOS:
            return


def _is_usual(number: int, components: bytes) -> bool:
    """Return whether the components of a frame (3 bytes each) are gray, or YCbCr sampled as usual."""
    if len(components) != 3 * number:
        return False
    if number == 1:
        return True
    ids, samplings = components[::3], components[1::3]
    is_ycbcr = number == 3 and ids != b"RGB" and len({*ids}) == 3
    return is_ycbcr and samplings[0] in _LUMA_SAMPLINGS and samplings[1:] == b"\x11\x11"


def _is_read_alike(marker: int, body: bytes) -> bool:
    """Return whether a segment is known, changes no colours, and is long enough for Pillow's parser of headers."""
    if marker == _ADOBE and body[:5] == b"Adobe":
        return body[11:12] == b"\1"  # 0 is RGB or gray, 2 is YCCK.
    if marker == _APP0 and body[:4] == b"JFIF":
        return len(body) >= 7
    if marker == _APP2 and body[:12] == b"ICC_PROFILE\0":
        return len(body) >= 14
    if marker == _APP13:
        return body[-6:-2] != b"8BIM"
    return marker in _USUAL


def _has_its_scan(data: bytes, head: bytes, position: int, components: bytes, interval: int) -> bool:
    """Return whether one scan of all components, with data from `position` on, ends at the end of the file."""
    if head[1:-3:2] != components[::3] or head[-3:] != _SEQUENTIAL_SCAN:
        return False
    end = _end_of_scan(data, position, interval)
    return data[end : end + 2] == _END


def _has_all_scans(data: bytes, head: bytes, position: int, components: bytes, interval: int) -> bool:
    """Return whether the scans of a progressive JPEG have all bits of all coefficients up to the end of the file.

    libjpeg smooths a picture with missing bits, and smooths a region differently from the whole.
    """
    if has_many_scans(data):
        return False
    # By component and coefficient: how many bits are still to come.
    missing = {one: [_ALL_BITS] * 64 for one in components[::3]}
    while _take_scan(head, missing):  # A repeated header is refused, so the loop ends.
        position = _end_of_scan(data, position, interval)
        if data[position : position + 2] == _END:
            return not any(map(any, missing.values()))
        for marker, body, end in _segments(data, position):
            if marker == _SOS:
                head, position = body, end
            elif marker != _DHT:
                return False
    return False


def _take_scan(head: bytes, missing: dict[int, list[int]]) -> bool:
    """Take the bits of a progressive scan out of `missing`. Return False for a header that is not in order."""
    if len(head) < 6 or len(head) != 4 + 2 * head[0]:
        return False
    ids, (first, last, bits) = head[1:-3:2], head[-3:]
    high, low = divmod(bits, 16)
    # The first coefficient comes alone, of any components; the others of one component.
    is_right = last == 0 if first == 0 else first <= last <= 63 and len(ids) == 1
    if not is_right or len({*ids}) < len(ids) or low > 13 or (high and high != low + 1):
        return False
    before = [high or _ALL_BITS] * (last - first + 1)
    for one in ids:
        rest = missing.get(one)
        if rest is None or rest[first : last + 1] != before or (first and rest[0] == _ALL_BITS):
            return False
        rest[first : last + 1] = [low] * len(before)
    return True


def _end_of_scan(data: bytes, position: int, interval: int) -> int:
    """Return where the data of a scan end: at the next marker but restarts.

    Restarts out of order give the end of the file. In coded data 0xFF is followed by 0; any other byte makes a marker.
    """
    if len(data) - position < 2:
        return len(data)
    if not interval:
        # Takes two thirds of the time of a regular expression.
        coded = np.frombuffer(data, np.uint8, offset=position)
        return position + int(((coded[:-1] == 0xFF) & (coded[1:] != 0)).argmax())
    found = _OTHER_MARKER.search(data, position)
    end = found.start() if found else len(data)
    restarts = b"".join(_RESTART.findall(data, position, end))
    return end if restarts == (_RESTARTS * (len(restarts) // 8 + 1))[: len(restarts)] else len(data)
