"""Files that two programs read differently: the scan and torch must read the same content.

Oracle: the rules of zip and JSON. Control: torch and safetensors themselves, which read the other of the two contents.
"""

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


@pytest.fixture
def members() -> dict[str, bytes]:
    """Return the file of torch.save for one small tensor."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def cut(archive: bytes) -> tuple[bytes, bytes, int]:
    """Return a zip's members, the directory and the number of members."""
    count, length, offset = struct.unpack_from("<HLL", archive, len(archive) - 12)
    return archive[:offset], archive[offset : offset + length], count


def padded(directory: bytes, length: int) -> bytes:
    """Return a longer directory: the last member gets a comment."""
    last = directory.rindex(b"PK\1\2")
    comment = length - len(directory)
    return directory[: last + 32] + struct.pack("<H", comment) + directory[last + 34 :] + b" " * comment


def one_in_the_other(shown: bytes, hidden: bytes) -> bytes:
    """Return a zip with two directories: readers that look before the end record see `shown`, others `hidden`."""
    members, directory, _ = cut(shown)
    first, found, count = cut(hidden)
    length = max(len(directory), len(found))
    first += bytes(max(0, len(members) - len(first)))
    moved = bytearray(padded(directory, length))
    place = 0
    while place < len(directory):
        sizes = struct.unpack_from("<HHH", moved, place + 28)
        offset = struct.unpack_from("<L", moved, place + 42)[0]
        struct.pack_into("<L", moved, place + 42, offset + len(first) - len(members))
        place += 46 + sum(sizes)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, len(first), 0)
    return first + padded(found, length) + members + bytes(moved) + end


def test_a_zip_in_a_zip(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = tmp_path / "weights.pth"
    evil = {"archive/data.pkl": BOMB, "archive/version": b"3\n", "archive/rest": bytes(3000)}
    path.write_bytes(one_in_the_other(zipped(members), zipped(evil)))
    with zipfile.ZipFile(path) as archive:  # Python sees the harmless content, torch the other.
        assert archive.read("archive/data.pkl") == members["archive/data.pkl"]
        assert archive.testzip() is None
    assert len(torch.load(path, weights_only=True)) == BOMB_BYTES
    assert "could hide" in refusal(path)


def test_a_second_pickle_in_capitals(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped({**members, "archive/DATA.PKL": BOMB}))
    assert len(torch.load(path, weights_only=True)) == BOMB_BYTES
    assert "not a zip of torch.save" in refusal(path)


def test_only_what_torch_writes_is_in_a_zip(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped(members))
    assert read_torch_file(path)["w"].tolist() == [1, 1, 1]
    for name in ("archive/more", "archive/data/x", "archive/data/0/0", "archive/data/\u0661"):
        path.write_bytes(zipped({**members, name: b""}))
        assert "not a zip of torch.save" in refusal(path)


def test_a_list_of_members_without_end(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped({**members, **{f"archive/data/{number}": b"" for number in range(1, 40_000)}}))
    assert "list of members" in refusal(path)


def test_the_name_of_a_file_is_no_code(tmp_path: Path) -> None:
    """torch.save names the folder in the zip after the file."""
    torch.save({"w": torch.ones(3)}, tmp_path / "code")
    assert read_torch_file(tmp_path / "code")["w"].tolist() == [1, 1, 1]


def safetensors(path: Path, header: str, numbers: bytes = bytes(4)) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + numbers)
    return path


FLOAT = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (f'{{"w": {FLOAT}, "w": {FLOAT.replace("F32", "I32")}}}', "name w twice"),
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
    path = safetensors(tmp_path / "x.safetensors", header, b"" if "[0, 0]" in header else bytes(4))
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(path)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_library_lets_a_name_come_twice(tmp_path: Path) -> None:
    """The control: the library silently takes the last of two tensors of one name."""
    header = f'{{"w": {FLOAT}, "w": {FLOAT.replace("F32", "I32")}}}'
    assert load_file(safetensors(tmp_path / "x.safetensors", header))["w"].dtype == torch.int32
    plain = safetensors(tmp_path / "y.safetensors", f'{{"w": {FLOAT}}}')
    assert read_safetensors(plain)[0]["w"].tolist() == [0.0]
