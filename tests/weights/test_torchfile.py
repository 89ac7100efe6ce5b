"""Oracle: torch.save and torch.load themselves, and the sizes of the published files."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import flip_bit
from torch_files import HEAD, MAGIC, SYSTEM, Touch, long, old_file, save_as_published, tensor_pickle

from seresnext.errors import CheckpointError
from seresnext.models import MODELS, create_model
from seresnext.weights.torchfile import read_torch_file


def small_state() -> OrderedDict:
    torch.manual_seed(0)
    return OrderedDict(
        {
            "conv.weight": torch.randn(8, 3, 3, 3),
            "conv.last": torch.randn(8, 3, 3, 3).contiguous(memory_format=torch.channels_last),
            "bn.num_batches_tracked": torch.tensor(7),
            "half": torch.randn(4).half(),
            "truth": torch.tensor([True, False]),
            "empty": torch.zeros(0, 5),
        }
    )


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name])
        assert found[name].stride() == expected[name].stride()


def refusal(path: Path) -> str:
    """Return the message of a refusal: one printable line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    assert caught.value.exit_code == 4
    return message.replace(str(path), "")  # The path has the name of the test.


@pytest.fixture(params=["old", "zip"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Return `save(state)`, which writes a file in one of the two formats of torch.save and returns the path."""

    def make(state: object) -> Path:
        torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=request.param == "zip")
        return tmp_path / "weights.pth"

    return make


# ------------------------------------------------------------------------------------------------ files that are read


FLAT = torch.arange(10.0)
NORM = torch.nn.BatchNorm2d(4)
STATES = {
    "a state": small_state(),
    "an entry, as in torch's ImageNet example": {"epoch": 3, "state_dict": small_state(), "optimizer": {"state": {}}},
    "a dict with the attribute `_metadata`": NORM.state_dict(),
    "parameters": dict(NORM.named_parameters()),
    "one storage cut into tensors": {"a": FLAT[:4].view(2, 2), "b": FLAT[4:]},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_state_dicts(save, state: dict) -> None:
    found = read_torch_file(save(state)).tensors
    assert_same(found, state.get("state_dict", state))
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.weights_bytes])
def test_files_as_published(name: str, tmp_path: Path) -> None:
    """The published files have the same size to the byte, so the format is right."""
    state = create_model(name).state_dict()
    path = tmp_path / "weights.pth"
    v2 = "26" in name
    if not v2:
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        assert len(state) == {"legacy_seresnext50_32x4d": 331, "legacy_seresnext101_32x4d": 654}[name]
    save_as_published(state, path, v2)
    assert path.stat().st_size == MODELS[name].weights_bytes
    assert_same(read_torch_file(path).tensors, state)


# ------------------------------------------------------------------------------------------------ code


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_code_in_any_of_the_five_pickles(tmp_path: Path, place: int) -> None:
    """Whole commands and the control are in `runs/test_untrusted.py`."""
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    parts = [MAGIC, 1001, SYSTEM, {}, []]
    parts[place] = Touch(canary)
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    assert "posix.system" in refusal(path)
    assert not canary.exists()


# ------------------------------------------------------------------------------------------------ memory


SIX = struct.pack("<q", 6) + bytes(24)  # A storage of zeros in the file.


@pytest.mark.usefixtures("little_memory")
def test_a_storage_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    program = tensor_pickle(6, 0, (2, 3), (3, 1))
    path.write_bytes(old_file(program, ["0"], SIX))
    assert_same(read_torch_file(path).tensors, {"w": torch.zeros(2, 3)})  # The control.
    path.write_bytes(old_file(program, ["0"], struct.pack("<q", 10**9) + SIX[8:]))
    assert "1,000,000,000 elements, not 6" in refusal(path)


def test_many_tensors_of_one_storage(save) -> None:
    shared = torch.zeros(1000)
    assert "share storages" in refusal(save({str(i): shared.view(10, 100) for i in range(1000)}))


def test_compressed_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
    assert "a compressed zip" in refusal(tmp_path / "weights.pth")


# A comparison or a print of this list would need a very deep stack.
NESTED = b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."
ORDERS = [["0", "0"], [], ["1"], ["0", "1"], [0], "0", None, [["0"]]]


@pytest.mark.parametrize("order", [*(pickle.dumps(order, protocol=2) for order in ORDERS), NESTED], ids=len)
def test_order_of_other_storages(tmp_path: Path, order: bytes) -> None:
    (tmp_path / "file").write_bytes(HEAD + tensor_pickle(6, 0, (6,), (1,)) + order + SIX)
    assert "list of storages" in refusal(tmp_path / "file")


# ------------------------------------------------------------------------------------------------ damage


def test_truncation_anywhere(save) -> None:
    path = save(small_state())
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        refusal(path)


def test_flipped_bit_in_a_zip_number(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.full((1000,), 3.0)}, path)
    flip_bit(path, path.read_bytes().index(struct.pack("<f", 3.0) * 10) + 6)
    assert "CRC" in refusal(path)


def test_a_member_without_bytes(tmp_path: Path) -> None:
    """The checksums are right, and torch's library returns memory that nothing was written to."""
    path = tmp_path / "file"
    torch.save({"w": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    listed = data.rindex(b"file/data/0") - 46
    assert data[listed : listed + 4] == b"PK\1\2"
    data[listed + 16 : listed + 24] = bytes(8)  # CRC and size of an empty member; the uncompressed size is unchanged.
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # The control: the checksums alone accept the file.
    assert "cut off" in refusal(path)


# ------------------------------------------------------------------------------------------------ other files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a file of torch.save"),
        (b"\x80\x02N.", ""),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(content)
    assert reason in refusal(tmp_path / "file")


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert "not a regular file" in refusal(path)
    assert "No such file" in refusal(tmp_path / "absent")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (torch.nn.Linear(2, 2), "save the state dict alone"),
        ({}, "holds 0 tensors"),
        *((state, "") for state in ([FLAT], {"a": 3}, {"a": {"b": FLAT}}, {3: FLAT})),
    ],
)
def test_other_contents(save, state: object, reason: str) -> None:
    assert reason in refusal(save(state))


@pytest.mark.parametrize("members", [["a/data.pkl", "b/data.pkl"], ["data.pkl"], ["archive/version"]])
def test_odd_zips(tmp_path: Path, members: list[str]) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        for name in members:
            archive.writestr(name, pickle.dumps({}, protocol=2))
    assert "not a zip of torch.save" in refusal(tmp_path / "file")


def test_names_cannot_write_to_the_terminal(save) -> None:
    message = refusal(save({"\x1b[2J\x1b]0;owned\x07" + "a" * 10_000 + str(i): "text" for i in range(50)}))
    assert r"\x1b[2J" in message
    assert len(message) < 3000


# ------------------------------------------------------------------------------------------------ two readings


def test_a_second_pickle_in_capitals(tmp_path: Path) -> None:
    """The pickle that is checked is the pickle that is used. The control: torch's own reader takes the other one."""
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.ones(3)}, path)
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    bomb = b"\x80\x02cbuiltins\nbytearray\n" + long(12_345_678) + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*members, ("weights/DATA.PKL", bomb)]:
            archive.writestr(name, content)
    assert len(torch.load(path, weights_only=True)) == 12_345_678
    assert read_torch_file(path).tensors["w"].tolist() == [1, 1, 1]
