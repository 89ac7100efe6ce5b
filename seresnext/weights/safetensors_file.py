"""Reading safetensors files: a length in 8 bytes, a JSON header of names, shapes and strings, then the numbers.

https://github.com/huggingface/safetensors#format. The library checks that the tensors fill the file without gap or
overlap. Nothing in such a file can run. Before the library reads a file, this module refuses a header that would cost
memory.
"""

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
from seresnext.weights.names import MOST_DIMENSIONS, MOST_TENSORS
from seresnext.weights.opening import open_file

# Bytes. A checkpoint of SE-ResNeXt-101 has 400 thousand. A parsed header takes about ten times the length of the text.
_LONGEST_HEADER = 16 << 20

# Texts in a header: five for each tensor, and the metadata.
_MOST_TEXTS = 6 * MOST_TENSORS
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)

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
        if any(number == _MOST_TEXTS for number, _ in enumerate(_TEXT.finditer(text))):
            raise ValueError(f"the header has more than {_MOST_TEXTS:,} texts; no model here needs so many")
        with safe_open(path, framework, device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_slice(name)
                dtype, dimensions = tensor.get_dtype(), len(tensor.get_shape())
                if dtype not in DTYPE_NAMES.values() or dimensions > MOST_DIMENSIONS:
                    raise ValueError(f"the tensor {printable(name)} has the dtype {dtype}, {dimensions:,} dimensions")
            yield opened
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: torch cannot map the file.
        raise CheckpointError(
            f"{shown_path(path)} is damaged or no safetensors file: {printable(error)}; give another file"
        ) from error
