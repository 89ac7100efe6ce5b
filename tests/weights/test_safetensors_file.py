"""Files against the safetensors library, and the marks of checkpoints: damaged ones are no bare weights."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seresnext.checkpoint import file_format
from seresnext.errors import CheckpointError
from seresnext.files import UnreadableError
from seresnext.weights import read_weights
from seresnext.weights.safetensors_file import FORMAT, is_checkpoint, read_header, read_safetensors, verify_digest

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
    return messages[0].replace(str(path), "")  # The path has the name of the test.


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


def test_a_folder_and_no_metadata(tmp_path: Path) -> None:
    assert "not a regular file" in refusal(tmp_path)
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    assert read_safetensors(tmp_path / "a.safetensors")[1] == {}


def test_truncation(path: Path) -> None:
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert "is damaged or no safetensors file" in refusal(path)


def test_dtype_that_is_unknown_here(tmp_path: Path) -> None:
    save_file({"\x1b[2J": torch.zeros(2, dtype=torch.uint16)}, tmp_path / "x.safetensors")
    assert "U16" in refusal(tmp_path / "x.safetensors")


# ------------------------------------------------------------------------------------------------ headers

FLOAT = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
STRANGE = FLOAT.replace("F32", r"\u001b[2J")


def safetensors(path: Path, header: str) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(0 if "[0, 0]" in header else 4))
    return path


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (f'{{"w": {FLOAT}, "v": {FLOAT.replace("[0, 4]", "[2, 6]")}}}', "invalid offset"),
        (f'{{"w": {FLOAT.replace("[0, 4]", "[4, 8]")}}}', "invalid offset"),
        (f'{{"w": {FLOAT.replace("[1]", "[2]")}}}', "invalid shape"),
        (f'{{"w": {FLOAT.replace("[1]", f"[{2**62}, 8]")}}}', "overflow"),
        (f'{{"w": {STRANGE}}}', "unknown variant"),
        ('{"__metadata__": {"a": 3}}', "string"),
        (f'{{"w": {FLOAT.replace("[1]", json.dumps([1] * 1000))}}}', "1,000 dimensions"),
        ('["__metadata__"]', "expected struct"),
        ("[" * 100_000, "expected struct"),
        ('{"a":' * 100_000, "recursion"),
        ('"' * 600_000, "texts"),
        ("{" + ",".join(f'"{number}":""' for number in range(130_000)) + "}", "texts"),
    ],
)
def test_headers(tmp_path: Path, header: str, reason: str) -> None:
    assert reason in refusal(safetensors(tmp_path / "x.safetensors", header))


MARKED = {"model.w": torch.arange(4.0)}
OURS = {"format": FORMAT, "step": "3", "recipe": "{}", "recipe_hash": "0"}


def write(path: Path, **metadata: str) -> Path:
    file_format.write_synced(path, *file_format.header(MARKED, {**OURS, **metadata}))
    return path


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},  # every file of transformers and of huggingface_hub
        {"format": "tf"},
        {"format": "pt", "recipe": "soup", "step": "9", "digest": "none"},
        {"modelspec.architecture": "seresnext-1"},
        {},
    ],
)
def test_files_of_others_are_bare_weights(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file(MARKED, path, metadata)
    tensors, found, *_ = read_weights(path)
    assert torch.equal(tensors["model.w"], MARKED["model.w"])
    assert found == {}


@pytest.mark.parametrize("name", ["last.safetensors", "step-00000003.safetensors.superseded", "x.pth"])
@pytest.mark.parametrize("version", [FORMAT, "seresnext-1"])
def test_a_checkpoint_is_one_under_any_name(tmp_path: Path, name: str, version: str) -> None:
    tensors, found, *_ = read_weights(write(tmp_path / name, format=version))
    assert torch.equal(tensors["model.w"], MARKED["model.w"])
    assert {key: value for key, value in found.items() if key != "digest"} == {**OURS, "format": version}


def test_every_byte_of_a_checkpoint_counts(tmp_path: Path) -> None:
    """A change of any byte is refused, and the file is never read as bare weights."""
    whole = write(tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "damaged.safetensors"
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            read_weights(path)


@pytest.mark.parametrize("version", ["seresnext-3", "seresnext-99", "seresnext-x"])
def test_other_versions_are_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(CheckpointError, match=version):
        read_weights(write(tmp_path / "new.safetensors", format=version))


@pytest.mark.parametrize("metadata", [{"format": FORMAT}, {"format": "seresnext-9"}, {"digest": "0" * 64}])
def test_marks_without_a_digest_in_its_place_are_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    assert is_checkpoint(metadata)
    save_file(MARKED, tmp_path / "copy.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"copy\.safetensors"):
        read_weights(tmp_path / "copy.safetensors")


@pytest.mark.parametrize("read", [read_weights, verify_digest])
def test_a_disk_that_fails_during_the_read_is_named(read) -> None:
    """The first byte of the memory of a process cannot be read."""
    with pytest.raises(UnreadableError, match="/proc/self/mem cannot be read: Input/output error; give another path"):
        read(Path("/proc/self/mem"))
