"""Files that two programs read differently. Control: torch and safetensors, which read the other content."""

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seresnext.errors import CheckpointError
from seresnext.weights.safetensors_file import read_safetensors
from seresnext.weights.torchfile import read_torch_file

BOMB_BYTES = 12_345_678
BOMB = b"\x80\x02cbuiltins\nbytearray\n\x8a\x04" + struct.pack("<i", BOMB_BYTES) + b"\x85R."
FLOAT = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
TWICE = f'{{"w": {FLOAT}, "w": {FLOAT.replace("F32", "I32")}}}'


def zip_with(path: Path, **more: bytes) -> None:
    """Write the file of torch.save for one small tensor, with further members."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
        for name, content in more.items():
            copy.writestr(f"archive/{name}", content)


def test_a_second_pickle_in_capitals(tmp_path: Path) -> None:
    """The pickle that is checked is the pickle that is used: torch's own reader takes the other one."""
    path = tmp_path / "weights.pth"
    zip_with(path, **{"DATA.PKL": BOMB})
    assert len(torch.load(path, weights_only=True)) == BOMB_BYTES
    assert read_torch_file(path).tensors["w"].tolist() == [1, 1, 1]


def test_a_list_of_members_without_end(tmp_path: Path) -> None:
    zip_with(tmp_path / "weights.pth", **{f"data/{number}": b"" for number in range(1, 40_000)})
    with pytest.raises(CheckpointError, match="list of members"):
        read_torch_file(tmp_path / "weights.pth")


def safetensors(path: Path, header: str) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(0 if "[0, 0]" in header else 4))
    return path


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (TWICE, "name w twice"),
        (f'{{"__metadata__": {{"step": "1", "step": "2"}}, "w": {FLOAT}}}', "name step twice"),
        (f'{{"__metadata__": {{}}, "w": {FLOAT}, "__metadata__": {{}}}}', "name __metadata__ twice"),
        (f'{{"w": {FLOAT[:-1]}, "more": 1}}}}', "for the tensor w"),
        (f'{{"w": {FLOAT.replace("[1]", json.dumps([1] * 1000))}}}', "1,000 dimensions"),
        ('{"w": {"dtype": "F32", "shape": [0, 4611686018427387904], "data_offsets": [0, 0]}}', "no file can hold"),
        (f'{{"w": {FLOAT.replace("[1]", "[true]")}}}', "for the tensor w"),
        ('["__metadata__"]', "no mapping"),
        ("[" * 100_000, "recursion"),
        ('{"a":' * 100_000, "recursion"),
        ('"' * 300_000, "texts"),
        ("{" + ",".join(f'"{number}":""' for number in range(130_000)) + "}", "texts"),
    ],
)
def test_headers(tmp_path: Path, header: str, reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(safetensors(tmp_path / "x.safetensors", header))
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_library_lets_a_name_come_twice(tmp_path: Path) -> None:
    """The control: the library silently takes the last of two tensors of one name."""
    assert load_file(safetensors(tmp_path / "x.safetensors", TWICE))["w"].dtype == torch.int32
    plain = safetensors(tmp_path / "y.safetensors", f'{{"w": {FLOAT}}}')
    assert read_safetensors(plain)[0]["w"].tolist() == [0.0]
