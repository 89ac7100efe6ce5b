"""Oracle: the safetensors library's writer."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seresnext.errors import CheckpointError
from seresnext.weights.safetensors_file import read_header, read_safetensors

TENSORS = {"model.w": torch.arange(6.0).view(2, 3), "model.n": torch.tensor(3), "half": torch.ones(4).bfloat16()}
METADATA = {"step": "12", "recipe": "{}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "weights.safetensors", METADATA)
    return tmp_path / "weights.safetensors"


def refusal(path: Path) -> str:
    messages = []
    for read in (read_header, read_safetensors):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert str(path) in messages[0]
    assert messages[0].isprintable()
    return messages[0]


def test_read(path: Path) -> None:
    tensors, metadata = read_safetensors(path)
    assert metadata == read_header(path) == METADATA
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_header_does_not_read_the_numbers(tmp_path: Path) -> None:
    """A sparse file of 1 TB: reading it would take hours."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 2**40)
    assert read_header(path) == {}


def test_no_metadata(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    assert read_safetensors(tmp_path / "a.safetensors")[1] == {}


def test_truncation(path: Path) -> None:
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert "was cut off or damaged" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for name, at in (("a", 0), ("b", 4))},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}},
        {"a": {"dtype": "\x1b[2J", "shape": [2], "data_offsets": [0, 8]}},
        {"__metadata__": {"a": 3}},
    ],
)  # fmt: skip
def test_bad_headers(tmp_path: Path, header: dict) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    refusal(tmp_path / "x.safetensors")


def test_dtype_that_is_unknown_here(tmp_path: Path) -> None:
    save_file({"\x1b[2J": torch.zeros(2, dtype=torch.uint16)}, tmp_path / "x.safetensors")
    assert "U16" in refusal(tmp_path / "x.safetensors")


def test_length_of_the_header_is_capped(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 20 << 20))
    os.truncate(path, 30 << 20)
    assert "20,971,520" in refusal(path)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "not a regular file" in refusal(tmp_path / "pipe.safetensors")
    assert "not a regular file" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "absent.safetensors")
