"""Damage with a repair: lengths, checksums and digests are recomputed, so that readers reach the damaged content.

Each `mutate_*` returns the damaged bytes. Some inputs get damage without a repair, which tests the checksums.
"""

import hashlib
import io
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from fuzzing.mutations import (
    boundary,
    mutate_bytes,
    mutate_items,
    mutate_json,
    number_bytes,
    strange_bytes,
    strange_text,
)

_PLAIN_SHARE = 0.25  # The share of inputs with damage to any byte and without a repair.


def _or_plain(mutate: Callable[[Random, bytes, bytes], bytes]) -> Callable[[Random, bytes, bytes], bytes]:
    """Damage a share of the inputs as plain bytes."""

    def mutate_any(draws: Random, data: bytes, other: bytes = b"") -> bytes:
        if draws.random() < _PLAIN_SHARE:
            return mutate_bytes(draws, data, other)
        return mutate(draws, data, other)

    return mutate_any


# ------------------------------------------------------------------------------------------------ images

_FRAMES = (0xC0, 0xC1, 0xC2)
_RESTARTS = tuple(range(0xD0, 0xD8))
# Markers of all kinds: frames, tables, scans, restarts, application data, and markers without a length.
_MARKERS = (*range(0xC0, 0xD0), *range(0xD8, 0xE3), 0xED, 0xEE, 0xFE, 0x01, 0xFF)


def _segments(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return marker, content and following coded pixels of each segment of a JPEG after the start marker."""
    found, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xD9:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        after = end
        while marker == 0xDA and after + 1 < len(data) and (data[after] != 0xFF or data[after + 1] in (0, *_RESTARTS)):
            after += 1
        found.append((marker, data[position + 4 : end], data[end:after]))
        position = after
    return found


@_or_plain
def mutate_jpeg(draws: Random, data: bytes, other: bytes) -> bytes:
    """Damage a JPEG segment by segment. Most lengths are right, and some are wrong."""
    lies = draws.random() < 0.3

    def change(segment: tuple[int, bytes, bytes]) -> tuple[int, bytes, bytes]:
        marker, body, scan = segment
        match draws.choice(("body", "frame", "marker", "scan", "insert")):
            case "frame" if marker in _FRAMES:
                place, width = draws.choice(((0, 1), (1, 2), (3, 2), (5, 1), (6, 1), (7, 1), (8, 1), (10, 1)))
                number = draws.choice((0, 1, 2, 3, 4, 17, 34, 255, 4000, 65535)) % (1 << 8 * width)
                return marker, body[:place] + number.to_bytes(width, "big") + body[place + width :], scan
            case "marker":
                return draws.choice(_MARKERS), body, scan
            case "scan" if scan:
                return marker, body, mutate_bytes(draws, scan)
            case "insert":
                bodies = (b"Adobe\0\x64\0\0\0\0" + draws.randbytes(1), b"Exif\0\0" + draws.randbytes(20), b"")
                return draws.choice(_MARKERS), draws.choice(bodies), scan
            case _:
                return marker, mutate_bytes(draws, body, other[:200]), scan

    parts = [b"\xff\xd8"]
    for marker, body, scan in mutate_items(draws, _segments(data), change, most=120):
        length = (len(body) + 2) % 65536
        if lies and draws.random() < 0.3:
            length = draws.choice((0, 1, 2, 3, 7, 8, 9, length - 1, length + 1, 65535)) % 65536
        parts.append(bytes((0xFF, marker)) + length.to_bytes(2, "big") + body + scan)
    return b"".join(parts) + (b"\xff\xd9" if draws.random() < 0.9 else b"")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk with length and checksum."""
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


_PNG_BODIES: tuple[tuple[bytes, bytes], ...] = (
    (b"zTXt", b"key\0\0" + zlib.compress(bytes(2 << 20))),
    (b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
    (b"iCCP", b"name\0\0" + zlib.compress(bytes(2 << 20))),
    (b"tEXt", b"Comment\0" + bytes(range(256))),
    (b"tRNS", bytes(6)),
    (b"PLTE", bytes(9)),
    (b"gAMA", bytes(4)),
    (b"eXIf", b"MM\0*\0\0\0\x08" + bytes(12)),
    (b"acTL", bytes(8)),
    (b"pHYs", bytes(3)),
    (b"IEND", b""),
)


@_or_plain
def mutate_png(draws: Random, data: bytes, other: bytes) -> bytes:
    """Damage a PNG chunk by chunk, with the checksums of the damaged chunks."""
    chunks, position = [], 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))

    def change(chunk: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        kind, body = chunk
        match draws.choice(("body", "header", "kind", "insert", "pixels")):
            case "header" if kind == b"IHDR":
                place, width = draws.choice(((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)))
                number = draws.choice((0, 1, 2, 3, 4, 6, 8, 16, 255, 1000, 100_000, 2**31 - 1, 2**31))
                return kind, body[:place] + (number % (1 << 8 * width)).to_bytes(width, "big") + body[place + width :]
            case "kind":
                return draws.choice((b"IDAT", b"PLTE", b"tRNS", b"IEND", b"abcd", b"ABCD", b"\0\0\0\0")), body
            case "insert":
                return draws.choice(_PNG_BODIES)
            case "pixels" if kind == b"IDAT":
                return kind, zlib.compress(mutate_bytes(draws, pixels))
            case _:
                return kind, mutate_bytes(draws, body, other[:100])

    return data[:8] + b"".join(png_chunk(*chunk) for chunk in mutate_items(draws, chunks, change))


# ------------------------------------------------------------------------------------------------ tar, npy

_TAR_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))


def tar_header(block: bytes) -> bytes:
    """Return a header with a recomputed checksum."""
    block = block[:148] + b" " * 8 + block[156:512]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _tar_members(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 0
    while position + 512 <= len(data) and any(data[position : position + 512]):
        block = data[position : position + 512]
        digits = block[124:136].strip(b" \0")
        size = int(digits or b"0", 8) if digits.isdigit() and not digits.strip(b"01234567") else 0
        found.append((block, data[position + 512 : position + 512 + size]))
        position += 512 + -(-size // 512) * 512
    return found


def _extension(draws: Random, header: bytes) -> tuple[bytes, bytes]:
    """Draw a header extension of GNU tar or pax for the member that follows."""
    if draws.random() < 0.3:
        kind, body = draws.choice((b"L", b"K")), strange_bytes(draws) + b"\0"
    else:
        kind, body = draws.choice((b"x", b"x", b"g")), b""
        for _ in range(draws.choice((1, 2, 300))):
            keys = (b"path", b"size", b"comment", b"GNU.sparse.major", b"linkpath", strange_bytes(draws)[:99])
            key = draws.choice(keys)
            value = draws.choice((b"%d" % boundary(draws), strange_bytes(draws)[:3000], b"9" * 5000, b"a.jpg"))
            record = b" " + key + b"=" + value + b"\n"
            length = len(record) + len(str(len(record) + 3))
            body += b"%d" % draws.choice((length, length, length, length, boundary(draws))) + record
    return tar_header(header[:124] + b"%011o\0" % len(body) + header[136:156] + kind + header[157:]), body


@_or_plain
def mutate_tar(draws: Random, data: bytes, other: bytes) -> bytes:
    """Damage a tar archive and archives within member by member, and recompute the checksums of headers."""
    extended: list[tuple[bytes, bytes]] = []

    def change(member: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        header, body = member
        match draws.choice(("field", "field", "number", "body", "extend", "type")):
            case "field":
                start, width = draws.choice(_TAR_FIELDS)
                field = mutate_bytes(draws, header[start : start + width])
                if draws.random() < 0.3:
                    field = strange_bytes(draws)
                header = header[:start] + field[:width].ljust(width, b"\0") + header[start + width :]
            case "number":
                sizes = (b"%011o\0" % (boundary(draws) % 8**11), b"\x80" + number_bytes(draws, 8).rjust(11, b"\0"))
                header = header[:124] + draws.choice(sizes) + header[136:]
            case "extend":
                extended.append(_extension(draws, header))
            case "type":
                header = header[:156] + draws.choice((*b"0123456789LKxgSMVN\0ZA",)).to_bytes() + header[157:]
            case _:
                body = (mutate_tar if body[257:262] == b"ustar" else mutate_bytes)(draws, body, other)
                header = header[:124] + b"%011o\0" % len(body) + header[136:]
        return tar_header(header), body

    members = mutate_items(draws, _tar_members(data), change)
    for extension in extended:
        members.insert(draws.randrange(len(members) + 1), extension)
    content = b"".join(header + body + bytes(-len(body) % 512) for header, body in members)
    return content + draws.choice((bytes(1024), bytes(1024), bytes(1024), bytes(512), b"", bytes(1024) + other[:2048]))


_NPY_TYPES = (
    "'|O'", "'<f8'", "'|V16'", "'<U4'", "'<M8[s]'", "[]", "[('a', '|O')]", "'|u1'", "'>u4'", "None", "7", "''", "'x'",
    "[('offset', '<u4'), ('size', '<u4'), ('crc32', '<u4'), ('shard', '<u2'), ('label', '<i2')]",
    "[('offset', '<u4', (2,))]", "('<u4', (2, 2))", "'<u4,<u4'", "{'names': ['a'], 'formats': ['<u4']}", "[[]]", "(1,)",
)  # fmt: skip
_NPY_SHAPES = (
    "()", "(0,)", "(1,)", "(-1,)", "(3, 3)", "(0, 5)", "(9223372036854775807,)", "(18446744073709551616,)", "(1e3,)",
    "(True,)", "7", "None", "(None,)", "('a',)", "(2, 4611686018427387904)", "(1, 1, 1, 1)", "[6]", "(99999999999999,)",
)  # fmt: skip
_NPY_TOKENS = (
    "{", "}", "(" * 300, "[" * 80, "-" * 5000, "x", "1 if 1 else 2", "'a': 1, ", "\0", "#", "\\", "'", "\U0001d535",
)  # fmt: skip


@_or_plain
def mutate_npy(draws: Random, data: bytes, other: bytes) -> bytes:
    """Damage the header of an .npy file as text. Most lengths are right, and some are wrong."""
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    text, body = data[start : start + length].decode("latin-1"), data[start + length :]
    for _ in range(draws.choice((1, 1, 2))):
        place = draws.randrange(len(text) + 1)
        match draws.choice(("type", "shape", "order", "token", "bytes", "body")):
            case "type":
                text = re.sub(
                    r"('descr': ).*(, 'fortran)", lambda found: found[1] + draws.choice(_NPY_TYPES) + found[2], text
                )
            case "shape":
                text = re.sub(r"('shape': )\(.*?\)", lambda found: found[1] + draws.choice(_NPY_SHAPES), text)
            case "order":
                text = text.replace("False", draws.choice(("True", "None", "0", "'x'", "{}")))
            case "token":
                text = text[:place] + draws.choice(_NPY_TOKENS) + text[place:]
            case "bytes":
                text = mutate_bytes(draws, text.encode("utf-8", "replace")).decode("latin-1")
            case _:
                body = mutate_bytes(draws, body, other)
    header = text.encode("utf-8", "replace")
    version = draws.choice((1, 1, 1, 1, 2, 3, 0, 255))
    width = 2 if version == 1 else 4
    length = len(header) if draws.random() < 0.9 else boundary(draws)
    return b"\x93NUMPY" + bytes((version, 0)) + (length % (1 << 8 * width)).to_bytes(width, "little") + header + body


# ------------------------------------------------------------------------------------------------ files of torch

_PIECES = (
    *(bytes([code]) for code in b".0(1N\x88\x89})]lt\x85\x86\x87aesubRQoidc2r"),
    *(b"K\1", b"M\0\1", b"J\xff\xff\xff\xff", b"G" + bytes(8), b"q\0", b"q\1", b"r\0\0\0\1", b"h\0", b"h\1"),
    *(b"X\1\0\0\0a", b"X\7\0\0\0storage", b"X\3\0\0\0cpu", b"\x8a\1\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\0"),
    *(b"\x8b\0\0\0\x7f", b"X\xff\xff\xff\x7f", b"I1\n", b"I01\n", b"L9L\n", b"S'a'\n", b"Vabc\n", b"p0\n", b"g0\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"ctorch\nLongStorage\n", b"cos\nsystem\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"c__builtin__\neval\n"),
    *(b"X\x09\0\0\0_metadata", b"X\x0a\0\0\0state_dict", b"j\0\0\0\1", b"\x80\2", b"\x80\4", b"F1\n"),
    *(b"ccollections\nOrderedDict\n)R" * 40, b"(" * 3000, b"]" * 3000, b"}" * 3000, b")" * 3000 + b"\x85" * 3000),
)  # fmt: skip


def mutate_pickle(draws: Random, data: bytes) -> bytes:
    """Damage a pickle, or several one after the other, instruction by instruction."""
    stream, starts = io.BytesIO(data), [0]
    try:
        while stream.tell() < len(data):
            for _, _, place in pickletools.genops(stream):
                starts.append(place or 0)
    except ValueError:  # In the old format, numbers of tensors follow the pickles.
        pass
    starts = sorted({*starts, min(stream.tell(), len(data))})
    instructions = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]

    def change(instruction: bytes) -> bytes:
        piece = draws.choice(_PIECES)
        damaged = mutate_bytes(draws, instruction) if len(instruction) < 100_000 else instruction
        return draws.choice((piece, piece + instruction, instruction + piece, damaged, damaged))

    return b"".join(mutate_items(draws, instructions, change))


@_or_plain
def mutate_torch_zip(draws: Random, data: bytes, other: bytes) -> bytes:
    """Damage a file of torch.save member by member, with the checksums of the damaged members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    attributes = 0

    def change(member: tuple[str, bytes]) -> tuple[str, bytes]:
        nonlocal attributes
        name, body = member
        match draws.choice(("body", "body", "body", "name", "zeros", "attributes", "whole")):
            case "name":
                folder = name.partition("/")[0]
                names = (
                    "data/0",
                    "data/00",
                    "DATA/0",
                    "data.pkl",
                    "code/x.py",
                    "constants.pkl",
                    strange_text(draws)[:99],
                )
                return draws.choice((f"{folder}/{draws.choice(names)}", strange_text(draws)[:99])), body
            case "zeros":
                return name, bytes(len(body)) + bytes(draws.choice((0, 4, 1 << 16)))
            case "attributes":
                attributes = draws.choice((0x10, 1 << 30, 0xFFFFFFFF))
                return name, body
            case _ if name.endswith(".pkl"):
                return name, mutate_pickle(draws, body)
            case _:
                return name, mutate_bytes(draws, body, other)

    members = mutate_items(draws, members, change, most=3)
    if draws.random() < 0.7:
        members = [(name, mutate_pickle(draws, body) if name.endswith("data.pkl") else body) for name, body in members]
    buffer = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if draws.random() < 0.05 else zipfile.ZIP_STORED
    written: set[str] = set()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, body in members:
            if name not in written or draws.random() < 0.5:
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
                info.external_attr, info.compress_type = attributes, packing
                archive.NameToInfo.pop(info.filename, None)  # zipfile warns about a repeated name.
                archive.writestr(info, body)
                written.add(name)
    return buffer.getvalue() if draws.random() < 0.9 else mutate_bytes(draws, buffer.getvalue(), other)


@_or_plain
def mutate_torch_old(draws: Random, data: bytes, _: bytes) -> bytes:
    """Damage the pickles of a file in the format before torch 1.6."""
    return mutate_pickle(draws, data)


# ------------------------------------------------------------------------------------------------ safetensors

_ZEROS = "0" * 64


def _numbers(draws: Random, body: bytes) -> bytes:
    """Damage the numbers of tensors: change a few bytes, or write NaN, infinite and extreme values."""
    if draws.random() < 0.5 or len(body) < 8:
        return mutate_bytes(draws, body)
    odd = struct.pack("<f", draws.choice((float("nan"), float("inf"), -float("inf"), -1.0, 1e-45, 3e38)))
    place = draws.randrange(0, len(body) - 3, 4)
    count = draws.choice((1, 1, 1, 64, len(body) // 4))
    return (body[:place] + odd * count)[: len(body)] + body[place + 4 * count :]


def _metadata(draws: Random, metadata: dict[str, Any]) -> dict[str, Any]:
    """Damage one entry of the metadata. Most entries are JSON texts."""
    metadata = dict(metadata)
    key = draws.choice([name for name in metadata if name != "digest"] or ["a"])
    try:
        metadata[key] = mutate_json(draws, json.loads(metadata[key]))
    except (KeyError, ValueError, RecursionError):
        metadata[key] = draws.choice((strange_text(draws), str(boundary(draws))))
    if draws.random() < 0.1:
        metadata.pop(key)
    if draws.random() < 0.1:
        metadata[draws.choice(("averaged", "extra", strange_text(draws)))] = strange_text(draws)
    return metadata


@_or_plain
def mutate_safetensors(draws: Random, data: bytes, other: bytes) -> bytes:
    """Damage header, metadata or numbers of a safetensors file. Most header lengths are right, and some are wrong."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    match draws.choice(("header", "metadata", "body")):
        case "header":
            text = mutate_json(draws, header)
        case "metadata":
            text = json.dumps({**header, "__metadata__": _metadata(draws, header.get("__metadata__", {}))})
        case _:
            text, body = json.dumps(header), _numbers(draws, body)
    encoded = text.encode("utf-8", "surrogatepass")
    length = len(encoded) if draws.random() < 0.95 else boundary(draws) % (1 << 64)
    return length.to_bytes(8, "little") + encoded + body


def mutate_signed(draws: Random, data: bytes, other: bytes) -> bytes:
    """Damage a checkpoint and recompute the digest, so that readers reach the damaged content."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.pop("__metadata__")
    match draws.choice(("metadata", "metadata", "metadata", "tensors", "body")):
        case "metadata":
            for _ in range(draws.choice((1, 1, 2))):
                metadata = _metadata(draws, metadata)
        case "tensors":
            name, entry = draws.choice(list(header.items()))
            match draws.choice(("value", "rename", "remove", "type", "swap")):
                case "value":
                    with suppress(ValueError, RecursionError):
                        changed = json.loads(mutate_json(draws, header))
                        header = changed if isinstance(changed, dict) else {"x": changed}
                case "rename":
                    header[strange_text(draws)] = header.pop(name)
                case "remove":
                    del header[name]
                case "type":
                    entry["dtype"] = draws.choice(("I32", "F16", "BF16", "U8", "BOOL", "F64", "F8_E4M3", ""))
                case _:
                    second = draws.choice(list(header))
                    header[name], header[second] = header[second], header[name]
        case _:
            body = _numbers(draws, body)
    metadata.pop("digest", None)
    entries = {"__metadata__": {"digest": _ZEROS, **metadata}, **header}
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8", "surrogatepass")
    content = len(text).to_bytes(8, "little") + text + body
    place = content.index(_ZEROS.encode())
    return content[:place] + hashlib.sha256(content).hexdigest().encode() + content[place + 64 :]
