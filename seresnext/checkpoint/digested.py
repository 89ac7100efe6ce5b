"""One checkpoint file: written in the safetensors format, with a digest over every byte.

The format is https://github.com/huggingface/safetensors#format: the length of the header in 8 bytes, the header as
JSON, then the tensors. It is written here and not by the library, because the tensors (590 MB for SE-ResNeXt-101 with
EMA) go straight from their memory to the file, hashed on the way, without a second copy. The digest stands first in the
header, at an offset that never changes: it is hashed as zeros and put in place before the file is synced. So a check
trusts nothing of the file, not even that its header is JSON, until the digest is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from seresnext.errors import CheckpointError

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DIGEST_ZEROS = b"0" * 64
_HEADER_START = b'{"__metadata__":{"digest":"'
_DIGEST_OFFSET = 8 + len(_HEADER_START)
_CHUNK = 8 << 20  # bytes; large enough that system calls cost nothing, small enough to stay in cache while hashed


def header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[Tensor]]:
    """The header bytes with a digest of zeros, and the tensors in the order of the file.

    Wide elements come first, as in the library's own files, so that each tensor is aligned to its element size.
    """
    assert "digest" not in metadata
    entries: dict[str, object] = {"__metadata__": {"digest": _DIGEST_ZEROS.decode(), **dict(sorted(metadata.items()))}}
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    offset = 0
    for name, tensor in order:
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert text.startswith(_HEADER_START + _DIGEST_ZEROS)
    return len(text).to_bytes(8, "little") + text, [tensor for _, tensor in order]


def write_synced(path: Path, header: bytes, tensors: list[Tensor]) -> None:
    """Write a new file from what `header` gave, with its digest, and sync it to the disk. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        digest = hashlib.sha256()
        _write_hashed(file, memoryview(header), digest)
        for tensor in tensors:
            # A tensor in channels_last is copied in order here, one at a time; the others are not copied.
            flat = tensor.detach().reshape(-1).view(torch.uint8)
            _write_hashed(file, flat.numpy().data, digest)
        _write_at(file, digest.hexdigest().encode(), _DIGEST_OFFSET)
        os.fsync(file)
    finally:
        os.close(file)


def _write_hashed(file: int, data: memoryview, digest: hashlib._Hash) -> None:
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        digest.update(chunk)
        while chunk:
            chunk = chunk[os.write(file, chunk) :]


def _write_at(file: int, data: bytes, offset: int) -> None:
    written = os.pwrite(file, data, offset)
    assert written == len(data)  # 64 bytes over bytes that are already there


def verify_digest(path: Path) -> None:
    """Check every byte of the file against its digest.

    Raises CheckpointError for a file that is damaged or none of ours, and OSError for one that cannot be read: that is
    not the same as damaged.
    """
    # Without O_NONBLOCK the opening of a named pipe would wait for a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(f"{path} is not a regular file")
        start = file.read(_DIGEST_OFFSET + len(_DIGEST_ZEROS))
        claimed = start[_DIGEST_OFFSET:]
        if start[8:_DIGEST_OFFSET] != _HEADER_START or len(claimed) != len(_DIGEST_ZEROS):
            raise CheckpointError(f"{path} is not a checkpoint of this project, or its beginning is damaged")
        digest = hashlib.sha256(start[:_DIGEST_OFFSET] + _DIGEST_ZEROS)
        buffer = memoryview(bytearray(_CHUNK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
        if digest.hexdigest().encode() != claimed:
            raise CheckpointError(f"{path} is damaged: its content does not have the digest it was saved with")
