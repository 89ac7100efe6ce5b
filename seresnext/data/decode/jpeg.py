"""The markers of a JPEG: size, coding, colours, and whether all decoders see the same picture.

Sources: ITU-T T.81, and jdmarker.c of libjpeg-turbo for the errors that end a decode.
"""

import re
from collections.abc import Iterator

import numpy as np

MOST_SCANS = 100
"""Most scans of a progressive JPEG; usual are ten. A scan of few bytes covers all pixels: a megabyte takes an hour."""

_SOS, _DRI = 0xDA, 0xDD
_APP0, _APP1, _APP2, _APP13, _ADOBE = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))
# Frames that are baseline and extended sequential Huffman (ITU-T T.81, table B.1).
_SEQUENTIAL_FRAMES = frozenset((0xC0, 0xC1))
# Other usual segments: quantization and Huffman tables, data of applications, comments.
_USUAL = frozenset((0xC4, 0xDB, *range(_APP0, 0xF0), 0xFE))
# Sampling factors of the first component where the others have 1 x 1: 4:4:4, 4:2:2, 4:2:0.
_LUMA_SAMPLINGS = frozenset((0x11, 0x21, 0x22))
# Bytes at the end of a file that must hold the end mark. Some programs pad the file.
_TAIL = 64
_END = b"\xff\xd9"
_SEQUENTIAL_SCAN = b"\0\x3f\0"  # All 64 coefficients with all bits.
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_OTHER_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7]")
_RESTARTS = bytes(range(0xD0, 0xD8))


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a plain JPEG; None for any other bytes. Raises nothing.

    Plain is gray or YCbCr of 8 bits, of an ordinary sampling, of one scan, and complete. All markers are in order from
    the beginning to the end of the file, and the coded data contain none. All decoders see the same picture then. A
    progressive JPEG is not plain: a region takes nine tenths of the time of the whole.
    """
    if data[:2] != b"\xff\xd8" or _END not in data[-_TAIL:]:
        return None
    size, components, interval = (0, 0), b"", 0
    for marker, body, end in _segments(data, 2):
        if marker == _SOS:
            return size if all(size) and _has_its_scan(data, body, end, components, interval) else None
        if marker in _SEQUENTIAL_FRAMES and not components and body[:1] == b"\x08" and _is_usual(body):
            size = int.from_bytes(body[3:5]), int.from_bytes(body[1:3])
            components = body[6:]
        elif marker == _DRI and len(body) == 2:
            interval = int.from_bytes(body)
        elif not _is_read_alike(marker, body):
            return None
    return None


def read_metadata(data: bytes) -> tuple[bytes, bool]:
    """Return the EXIF of a JPEG, and whether there is XMP, both before the first scan as for Pillow. Raises nothing."""
    bodies = [body for marker, body, _ in _segments(data, 2) if marker == _APP1]
    # A longer block is in several segments.
    exif = b"".join(body[len(_EXIF) :] for body in bodies if body.startswith(_EXIF))
    return exif, any(body.startswith(_XMP) for body in bodies)


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


def _is_usual(frame: bytes) -> bool:
    """Return whether the components of a frame (3 bytes each, after 6 bytes) are gray, or YCbCr sampled as usual."""
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        return False
    ids, samplings = frame[6::3], frame[7::3]
    is_ycbcr = len(ids) == 3 and ids != b"RGB" and len({*ids}) == 3
    return len(ids) == 1 or (is_ycbcr and samplings[0] in _LUMA_SAMPLINGS and samplings[1:] == b"\x11\x11")


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
    """Return whether one scan of all components, with data from `position` on, ends at the end of the file.

    In coded data 0xFF is followed by 0; any other byte makes a marker. Restarts must be in order.
    """
    if head[1:-3:2] != components[::3] or head[-3:] != _SEQUENTIAL_SCAN or len(data) - position < 2:
        return False
    if not interval:
        # Takes two thirds of the time of a regular expression.
        coded = np.frombuffer(data, np.uint8, offset=position)
        end = position + int(((coded[:-1] == 0xFF) & (coded[1:] != 0)).argmax())
        return data[end : end + 2] == _END
    found = _OTHER_MARKER.search(data, position)
    if found is None or found[0] != _END:
        return False
    restarts = b"".join(_RESTART.findall(data, position, found.start()))
    return restarts == (_RESTARTS * (len(restarts) // 8 + 1))[: len(restarts)]
