"""Reading safetensors files: a length in 8 bytes, a JSON header of names, shapes and strings, then the numbers.

https://github.com/huggingface/safetensors#format. The library checks that the tensors fill the file without gap or
overlap. Nothing in such a file can run. Before the library reads a file, this module refuses a name that occurs twice,
dimensions that no tensor has, and more names than weights have, which would cost memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seresnext.errors import CheckpointError
from seresnext.printable import printable, shown_path
from seresnext.weights.names import MOST_TENSORS
from seresnext.weights.opening import open_file

# Bytes. A checkpoint of SE-ResNeXt-101 has 400 thousand. A parsed header takes about ten times the length of the text.
_LONGEST_HEADER = 16 << 20

# Texts in a header: five for each tensor, and the metadata.
_MOST_TEXTS = 6 * MOST_TENSORS
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_FIELDS = {"dtype", "shape", "data_offsets"}
_MOST_DIMENSIONS = 16
_LONGEST_DIMENSION = 2**31 - 1  # of a tensor without elements; other tensors are limited by the file

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata (empty if there is none) without reading the numbers. Raise CheckpointError."""
    # For numpy the library maps the file read-only. For torch the library asks for memory as large as the file.
    with _opened(path, "numpy") as file:
        return dict(file.metadata() or {})


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors, on the CPU, and the metadata (empty if there is none). Raise CheckpointError.

    The file must not change while the tensors live: the tensors may be views of the file.
    """
    with _opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, _LONGEST_HEADER))
    try:
        if not text or len(text) < length:
            raise ValueError(f"the first bytes announce a header of {length:,} bytes; {len(text):,} can be read")
        _check_header(text)
        with safe_open(path, framework, device="cpu") as opened:
            yield opened
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        # RuntimeError: torch cannot map the file, or the header is nested too deeply.
        raise CheckpointError(f"{shown_path(path)} is damaged or no safetensors file: {printable(error)}") from error


def _check_header(text: bytes) -> None:
    """Raise ValueError unless a header has only names and shapes of weights, and metadata."""
    if any(number == _MOST_TEXTS for number, _ in enumerate(_TEXT.finditer(text))):
        raise ValueError(f"the header has more than {_MOST_TEXTS:,} texts; no model here needs so many")
    header = json.loads(text, object_pairs_hook=_without_repeats)
    if not isinstance(header, dict):
        raise ValueError("the header is no mapping of names")
    if len(header) > MOST_TENSORS:
        raise ValueError(f"the header names {len(header):,} tensors; no model here has {MOST_TENSORS:,}")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry["shape"] if isinstance(entry, dict) and entry.keys() == _FIELDS else None
        if not isinstance(shape, list) or not all(type(length) is int for length in shape):
            raise ValueError(f"the header has no plain dtype, shape and offsets for the tensor {printable(name)}")
        if entry["dtype"] not in DTYPE_NAMES.values():
            raise ValueError(f"the tensor {printable(name)} has the unknown dtype {printable(entry['dtype'])}")
        if len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {printable(name)} has {len(shape):,} dimensions")
        if 0 in shape and max(shape) > _LONGEST_DIMENSION:
            raise ValueError(f"the tensor {printable(name)} has a dimension that no file can hold")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raise ValueError for a name that occurs twice: two readers could differ about its value."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the header has the name {printable(name)} twice")
        found[name] = value
    return found
