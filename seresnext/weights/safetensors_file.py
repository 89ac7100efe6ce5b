"""Reading safetensors files, and the marks of this project's checkpoints among them.

A file has a length in 8 bytes, a JSON header of names, shapes and strings, then the numbers
(https://github.com/huggingface/safetensors#format). The library checks that the tensors fill the file without gap or
overlap. Nothing in such a file can run. Before the library reads a file, this module refuses a header that would cost
memory.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seresnext.errors import CheckpointError, printable, shown_path
from seresnext.files import open_weights_file
from seresnext.weights.names import MOST_DIMENSIONS, MOST_TENSORS

# Bytes. A checkpoint of SE-ResNeXt-101 has 400 thousand. A parsed header takes about ten times the length of the text.
_LONGEST_HEADER = 16 << 20

# Texts in a header: five for each tensor, and the metadata.
_MOST_TEXTS = 6 * MOST_TENSORS
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)

DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


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


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return tensors and metadata of a safetensors file as `read_safetensors`, or None for a file of another kind.

    A file with the first bytes of a checkpoint needs no ending. The digest of a checkpoint is checked. The metadata of
    a bare file of weights are empty, even if another tool wrote some.
    """
    if path.suffix != ".safetensors":
        with open_weights_file(path) as file:  # A checkpoint can be a step-00000003.safetensors.superseded.
            if file.read(DIGEST_OFFSET)[8:] != HEADER_START:
                return None
    tensors, metadata = read_safetensors(path)
    if not is_checkpoint(metadata):
        return tensors, {}
    verify_digest(path)
    check_format(metadata.get("format"), shown_path(path))
    return tensors, metadata


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    with open_weights_file(path) as file:
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


FORMAT = "seresnext-2"
"""The format of new files. It rises with every version whose files an older version cannot read.

A checkpoint holds the whole recipe, and a version refuses recipe keys that it does not know. Version 0.1.0 wrote
`seresnext-1`; each file of 0.2.0 has keys that came later, such as `optimizer.betas`.
"""
READABLE_FORMATS = ("seresnext-1", FORMAT)
HEADER_START = b'{"__metadata__":{"digest":"'
DIGEST_ZEROS = b"0" * 64  # the digest field while the digest is computed
DIGEST_OFFSET = 8 + len(HEADER_START)
_FIX = "use another checkpoint"


def is_checkpoint(metadata: Mapping[str, str]) -> bool:
    """Return whether a safetensors file with these metadata is a checkpoint of this project, whole or damaged.

    Other tools also write metadata: Hugging Face's tools always write `format`. One mark is enough, since damage may
    have changed the others: a damaged checkpoint must not pass for bare weights.
    """
    return (
        metadata.get("format", "").startswith("seresnext-")
        or re.fullmatch(r"[0-9a-f]{64}", metadata.get("digest", "")) is not None
        or "recipe_hash" in metadata
    )


def check_format(found: str | None, source: str) -> None:
    """Raise CheckpointError unless this version reads the metadata `format` of the file `source`."""
    if found in READABLE_FORMATS:
        return
    match = re.fullmatch(r"seresnext-([0-9]{1,9})", found or "")
    if match and int(match[1]) > int(FORMAT.removeprefix("seresnext-")):
        raise CheckpointError(
            f"{source} has the format {found}, which a newer version wrote; this version reads formats up to {FORMAT}. "
            "Update this program to use the file"
        )
    raise CheckpointError(f"{source} has the format {printable(found)}, not of a run. Use a checkpoint of {FORMAT}")


def verify_digest(path: Path) -> None:
    """Check every byte of the file against the digest in the file.

    Raise CheckpointError for a file that is damaged or of another project, UnreadableError for an unreadable file.
    """
    with open_weights_file(path) as file:
        start = file.read(DIGEST_OFFSET + len(DIGEST_ZEROS))
        claimed = start[DIGEST_OFFSET:]
        if start[8:DIGEST_OFFSET] != HEADER_START or len(claimed) != len(DIGEST_ZEROS):
            raise CheckpointError(f"{path} is no checkpoint of this project, or the beginning is damaged; {_FIX}")
        digest = hashlib.sha256(start[:DIGEST_OFFSET] + DIGEST_ZEROS)
        hashlib.file_digest(file, lambda: digest)
    if digest.hexdigest().encode() != claimed:
        raise CheckpointError(f"{path} is damaged: the content does not have the digest that was saved; {_FIX}")
