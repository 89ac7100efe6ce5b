"""The writer of one checkpoint file: the safetensors format, with a digest over every byte.

The format is https://github.com/huggingface/safetensors#format: the length of the header in 8 bytes, the header as
JSON, then the tensors. The library would copy all tensors (590 MB for SE-ResNeXt-101 with EMA) before the write. This
module hashes and writes the tensors from their own memory. The digest is the first entry of the header, at a fixed
offset. The hash covers zeros in place of the digest, and the digest is written before the file is synced. A reader can
check the digest before the header is parsed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from seresnext.weights.safetensors_file import DIGEST_OFFSET, DIGEST_ZEROS, DTYPE_NAMES, HEADER_START

_CHUNK = 8 << 20  # bytes; large enough to make system calls cheap, small enough to stay in the cache during hashing


def header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[Tensor]]:
    """Return the header bytes with a digest of zeros, and the tensors in the order of the file.

    Tensors with large elements come first, as in the library's files: each tensor is aligned to the size of an element.
    """
    assert "digest" not in metadata
    entries: dict[str, object] = {"__metadata__": {"digest": DIGEST_ZEROS.decode(), **dict(sorted(metadata.items()))}}
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    offset = 0
    for name, tensor in order:
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert text.startswith(HEADER_START + DIGEST_ZEROS)
    return len(text).to_bytes(8, "little") + text, [tensor for _, tensor in order]


def write_synced(path: Path, header: bytes, tensors: list[Tensor]) -> None:
    """Write a new file from the result of `header`, with the digest, and sync the file to the disk. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        digest = hashlib.sha256()
        _write_hashed(file, memoryview(header), digest)
        for tensor in tensors:
            # Only a channels_last tensor is copied here, one at a time.
            flat = tensor.detach().reshape(-1).view(torch.uint8)
            _write_hashed(file, flat.numpy().data, digest)
        os.pwrite(file, digest.hexdigest().encode(), DIGEST_OFFSET)  # replaces 64 existing bytes, so all are written
        os.fsync(file)
    finally:
        os.close(file)


def _write_hashed(file: int, data: memoryview, digest: "hashlib._Hash") -> None:
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        digest.update(chunk)
        while chunk:
            chunk = chunk[os.write(file, chunk) :]
