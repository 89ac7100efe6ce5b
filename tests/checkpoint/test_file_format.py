"""The file format: the safetensors library reads the same, and every damage is found."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from damage import flip_bit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from seresnext.checkpoint import file_format
from seresnext.errors import CheckpointError
from seresnext.weights.safetensors_file import verify_digest

METADATA = {"format": "seresnext-1", "step": "7", "recipe": '{"name": "größe"}', "odd": 'quote " and \\ and \n'}


def every_kind_of_tensor() -> dict[str, Tensor]:
    floats = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    return {
        **{f"model.{kind}": torch.tensor([100, -2, 0]).to(kind) for kind in [*kinds, torch.uint8, torch.bool]},
        "model.channels_last": floats.to(memory_format=torch.channels_last),
        "model.transposed": floats[0, 0].T,
        "model.count": torch.tensor(12345678901),
        "model.empty": torch.empty(0, 3),
        "model.parameter": torch.nn.Parameter(torch.ones(2)),
    }


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] = METADATA) -> Path:
    path.unlink(missing_ok=True)
    file_format.write_synced(path, *file_format.header(tensors, metadata))
    return path


def test_library_reads_the_same(tmp_path):
    tensors = every_kind_of_tensor()
    path = write(tmp_path / "a", tensors)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.detach()), name
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    digest, content = metadata.pop("digest").encode(), path.read_bytes()
    assert metadata == METADATA
    assert content.count(digest) == 1  # The digest is the SHA-256 of the file with zeros in place of the digest.
    assert hashlib.sha256(content.replace(digest, b"0" * 64)).hexdigest().encode() == digest


def test_layout_is_the_librarys_own(tmp_path):
    """Same tensor bytes at the same aligned offsets as the library's writer, for dtypes of different widths."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in every_kind_of_tensor().items()}
    ours = write(tmp_path / "ours", tensors).read_bytes()
    save_file(tensors, tmp_path / "library")
    library = (tmp_path / "library").read_bytes()
    length, library_length = (int.from_bytes(content[:8], "little") for content in (ours, library))
    assert length % 8 == 0
    parts = json.loads(ours[8 : 8 + length])
    assert all(parts[name]["data_offsets"][0] % tensor.element_size() == 0 for name, tensor in tensors.items())
    assert len(ours) - length == len(library) - library_length


def test_equal_content_gives_equal_bytes(tmp_path):
    tensors = every_kind_of_tensor()
    reverse = dict(reversed(tensors.items()))
    first = write(tmp_path / "a", tensors, METADATA).read_bytes()
    assert write(tmp_path / "b", reverse, dict(reversed(METADATA.items()))).read_bytes() == first
    assert write(tmp_path / "c", {**tensors, "model.count": tensors["model.count"] + 1}).read_bytes() != first


def test_every_flipped_bit_is_found(tmp_path):
    path = write(tmp_path / "a", every_kind_of_tensor())
    content = path.read_bytes()
    draw = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for bit in [draw.randrange(limit * 8) for limit in (len(content), header) for _ in range(200)]:
        flip_bit(path, *divmod(bit, 8))
        with pytest.raises(CheckpointError, match=str(path)):
            verify_digest(path)
        flip_bit(path, *divmod(bit, 8))
    verify_digest(path)


def test_every_truncation_and_addition_is_found(tmp_path):
    path = write(tmp_path / "a", every_kind_of_tensor())
    content = path.read_bytes()
    for length in sorted({*range(120), *range(120, len(content), 97), *range(len(content) - 20, len(content))}):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=str(path)):
            verify_digest(path)
    path.write_bytes(content + b" ")
    with pytest.raises(CheckpointError, match="is damaged"):
        verify_digest(path)
