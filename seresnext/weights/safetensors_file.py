"""Reading safetensors files: a length in 8 bytes, a JSON header of names, shapes and strings, then the numbers.

https://github.com/huggingface/safetensors#format. The library checks that the tensors fill the file without gap or
overlap; nothing in such a file can run. What it lets pass is looked at here, before it reads the file: a name that is
there twice, dimensions that no tensor has, and more names than a small file should cost memory for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seresnext.errors import CheckpointError
from seresnext.weights.names import MOST_TENSORS, printable, shown_path
from seresnext.weights.opening import open_regular

# bytes. A checkpoint of SE-ResNeXt-101 has 400 thousand; parsed, a header takes some ten times its length.
_LONGEST_HEADER = 16 << 20

# Texts in a header: five of them say what a tensor is, and the rest is metadata.
_MOST_TEXTS = 6 * MOST_TENSORS
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_FIELDS = {"dtype", "shape", "data_offsets"}
_MOST_DIMENSIONS = 16
_LONGEST_DIMENSION = 2**31 - 1  # of a tensor without elements; the others fit into the file

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorKind(NamedTuple):
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Header(NamedTuple):
    """What a file says before its numbers: its metadata, and its tensors by name."""

    metadata: dict[str, str]
    tensors: dict[str, TensorKind]


def read_header(path: Path) -> Header:
    """The metadata, shapes and dtypes, without reading the numbers. Raises CheckpointError."""
    # For numpy the library maps the file read-only; for torch it asks for memory that could hold all of it.
    with _opened(path, "numpy") as file:
        return _header(file, path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, on the CPU, and the metadata (empty if there is none). Raises CheckpointError.

    The file must not change while the tensors live: they may be views of it.
    """
    with _opened(path, "pt") as file:
        header = _header(file, path)
        return {name: file.get_tensor(name) for name in header.tensors}, header.metadata


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise CheckpointError(
                f"{shown_path(path)} is refused: by its first bytes it has a header of {length:,} bytes, "
                f"so it is no safetensors file, or not one of weights (at most {_LONGEST_HEADER:,})"
            )
        text = file.read(length)
        if not text or len(text) < length:
            raise CheckpointError(
                f"{shown_path(path)} was cut off or damaged, or is no safetensors file: by its first bytes it has a "
                f"header of {length:,} bytes, and {len(text):,} follow"
            )
    try:
        _look_through(text)
        with safe_open(path, framework, device="cpu") as opened:
            yield opened
    except SafetensorError as error:
        raise CheckpointError(
            f"{shown_path(path)} was cut off or damaged, or is no safetensors file: {printable(error)}"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: torch cannot map the file, or the header is nested without end. ValueError: see above.
        raise CheckpointError(f"{shown_path(path)} cannot be read: {printable(error)}") from error


def _look_through(text: bytes) -> None:
    """Raise ValueError for a header with more in it, or with something else, than names and shapes of weights."""
    if any(number == _MOST_TEXTS for number, _ in enumerate(_TEXT.finditer(text))):
        raise ValueError(f"its header has more than {_MOST_TEXTS:,} texts, and weights have no use for so many")
    header = json.loads(text, object_pairs_hook=_without_repeats)
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping of names")
    if len(header) > MOST_TENSORS:
        raise ValueError(f"its header names {len(header):,} tensors, and no model here has {MOST_TENSORS:,}")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry["shape"] if isinstance(entry, dict) and entry.keys() == _FIELDS else None
        if not isinstance(shape, list) or not all(type(length) is int for length in shape):
            raise ValueError(f"its header does not say what the tensor {printable(name)} is")
        if len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {printable(name)} has {len(shape):,} dimensions")
        if 0 in shape and max(shape) > _LONGEST_DIMENSION:
            raise ValueError(f"the tensor {printable(name)} has a dimension that no file can hold")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. One with a name twice means one thing to this reader and another to that."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"its header has the name {printable(name)} twice")
        found[name] = value
    return found


def _header(file: Any, path: Path) -> Header:
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (the library's object is no dict)
        part = file.get_slice(name)
        kind = part.get_dtype()
        if kind not in _DTYPES:
            raise CheckpointError(
                f"{shown_path(path)}: the tensor {printable(name)} has the dtype {kind}, unknown here"
            )
        tensors[name] = TensorKind(tuple(part.get_shape()), _DTYPES[kind])
    return Header(dict(file.metadata() or {}), tensors)
