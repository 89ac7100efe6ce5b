"""Marks of checkpoints: a damaged checkpoint never counts as bare weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seresnext.checkpoint import file_format
from seresnext.errors import CheckpointError
from seresnext.weights import read_weights
from seresnext.weights.marks import FORMAT, is_checkpoint, verify_digest
from seresnext.weights.opening import UnreadableError

TENSORS = {"model.w": torch.arange(4.0)}
OURS = {"format": FORMAT, "step": "3", "recipe": "{}", "recipe_hash": "0"}


def write(path: Path, **metadata: str) -> Path:
    file_format.write_synced(path, *file_format.header(TENSORS, {**OURS, **metadata}))
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
    save_file(TENSORS, path, metadata)
    tensors, found, *_ = read_weights(path)
    assert torch.equal(tensors["model.w"], TENSORS["model.w"])
    assert found == {}


@pytest.mark.parametrize("name", ["last.safetensors", "step-00000003.safetensors.superseded", "x.pth"])
@pytest.mark.parametrize("version", [FORMAT, "seresnext-1"])
def test_a_checkpoint_is_one_under_any_name(tmp_path: Path, name: str, version: str) -> None:
    tensors, found, *_ = read_weights(write(tmp_path / name, format=version))
    assert torch.equal(tensors["model.w"], TENSORS["model.w"])
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
    save_file(TENSORS, tmp_path / "copy.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"copy\.safetensors"):
        read_weights(tmp_path / "copy.safetensors")


@pytest.mark.parametrize("read", [read_weights, verify_digest])
def test_a_disk_that_fails_during_the_read_is_named(read) -> None:
    """The first byte of the memory of a process cannot be read."""
    with pytest.raises(UnreadableError, match="/proc/self/mem cannot be read: Input/output error; give another path"):
        read(Path("/proc/self/mem"))
