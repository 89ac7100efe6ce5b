"""Oracle: torch.save and torch.load themselves, and the sizes of the published files."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from seresnext.errors import CheckpointError
from seresnext.models import MODELS, create_model
from seresnext.weights.torchfile import read_torch_file


def small_state() -> OrderedDict:
    torch.manual_seed(0)
    return OrderedDict(
        {
            "conv.weight": torch.randn(8, 3, 3, 3),
            "conv.last": torch.randn(8, 3, 3, 3).contiguous(memory_format=torch.channels_last),
            "bn.running_mean": torch.randn(8),
            "bn.num_batches_tracked": torch.tensor(7),
            "half": torch.randn(4).half(),
            "empty": torch.zeros(0, 5),
        }
    )


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name])


def refusal(path: Path) -> str:
    """Return the message of a refusal: one printable line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    assert caught.value.exit_code == 4
    return message


@pytest.fixture(params=["old", "zip"])
def new_format(request: pytest.FixtureRequest) -> bool:
    return request.param == "zip"


# ------------------------------------------------------------------------------------------------ files that are read


def test_state_dicts_of_both_formats(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(small_state(), path, _use_new_zipfile_serialization=new_format)
    assert_same(read_torch_file(path), small_state())


def test_training_checkpoint_is_unwrapped(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "weights.pth"
    momentum = {0: {"momentum_buffer": torch.ones(3)}}
    checkpoint = {"epoch": 3, "arch": "x", "best": 0.5, "state_dict": small_state(), "optimizer": {"state": momentum}}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=new_format)
    assert_same(read_torch_file(path), small_state())


def test_modules_and_parameters(tmp_path: Path, new_format: bool) -> None:
    """state_dict() of a module has an attribute, `_metadata`, and named_parameters() gives Parameters."""
    module = torch.nn.BatchNorm2d(4)
    for name, tensors in (("state", module.state_dict()), ("parameters", dict(module.named_parameters()))):
        path = tmp_path / name
        torch.save(tensors, path, _use_new_zipfile_serialization=new_format)
        found = read_torch_file(path)
        assert_same(found, tensors)
        assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in found.values())


def test_one_storage_cut_into_tensors(tmp_path: Path, new_format: bool) -> None:
    flat = torch.arange(10.0)
    path = tmp_path / "weights.pth"
    torch.save({"a": flat[:4].view(2, 2), "b": flat[4:]}, path, _use_new_zipfile_serialization=new_format)
    assert_same(read_torch_file(path), {"a": flat[:4].view(2, 2), "b": flat[4:]})


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.weights_bytes])
def test_files_as_published(name: str, tmp_path: Path, save_as_published) -> None:
    """The published files have the same size to the byte, so the format is right."""
    state = create_model(name).state_dict()
    path = tmp_path / MODELS[name].weights_file
    v2 = "26" in name
    if not v2:
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        assert len(state) == {"legacy_seresnext50_32x4d": 331, "legacy_seresnext101_32x4d": 654}[name]
    save_as_published(state, path, v2)
    assert path.stat().st_size == MODELS[name].weights_bytes
    assert_same(read_torch_file(path), state)


def test_link_is_followed(tmp_path: Path) -> None:
    torch.save(small_state(), tmp_path / "weights.pth")
    (tmp_path / "link").symlink_to("weights.pth")
    assert_same(read_torch_file(tmp_path / "link"), small_state())


# ------------------------------------------------------------------------------------------------ code


class Touch:
    """An object whose unpickling creates a file."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch {canary}"

    def __reduce__(self) -> object:
        return os.system, (self.command,)


def test_code_is_not_run(tmp_path: Path, new_format: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    torch.save({"w": Touch(canary)}, path, _use_new_zipfile_serialization=new_format)
    assert "posix.system" in refusal(path)
    assert not canary.exists()
    # The control: unpickled, the file does harm.
    torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_code_in_any_of_the_five_pickles(tmp_path: Path, place: int) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    parts = [pickle.load(file) for _ in range(5)]
    parts[place] = Touch(canary)
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    assert "posix.system" in refusal(path)
    assert not canary.exists()


def test_newer_protocol(tmp_path: Path, save_pickle) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    save_pickle(pickle.dumps({"w": Touch(canary)}, protocol=5), path)
    assert "protocol 5" in refusal(path)
    assert not canary.exists()


# ------------------------------------------------------------------------------------------------ memory


def floats(count: int) -> bytes:
    """Return the bytes of a storage of zeros in the file."""
    return struct.pack("<q", count) + bytes(4 * count)


def test_handwritten_pickle(tmp_path: Path, save_pickle, tensor_pickle) -> None:
    """The control for files that announce other sizes."""
    path = tmp_path / "weights.pth"
    save_pickle(tensor_pickle(6, 0, (2, 3), (3, 1)), path, ["0"], floats(6))
    assert_same(read_torch_file(path), {"w": torch.zeros(2, 3)})


@pytest.mark.usefixtures("little_memory")
def test_storage_larger_than_the_file(tmp_path: Path, save_pickle, tensor_pickle) -> None:
    path = tmp_path / "weights.pth"
    save_pickle(tensor_pickle(10**9, 0, (10**9,), (1,)), path, ["0"], floats(6))
    assert "was cut off or changed" in refusal(path)


def test_storage_of_another_length(tmp_path: Path, save_pickle, tensor_pickle) -> None:
    path = tmp_path / "weights.pth"
    save_pickle(tensor_pickle(6, 0, (6,), (1,)), path, ["0"], struct.pack("<q", 10**9) + bytes(24))
    assert "1,000,000,000 elements, not 6" in refusal(path)


def test_many_tensors_of_one_storage(tmp_path: Path, new_format: bool) -> None:
    shared = torch.zeros(1000)
    path = tmp_path / "weights.pth"
    state = {str(i): shared.view(10, 100) for i in range(1000)}
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    assert "share storages" in refusal(path)


@pytest.mark.usefixtures("little_memory")
def test_compressed_zip(tmp_path: Path, tensor_pickle) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(10**8, 0, (10**8,), (1,)).replace(b"NtQ", b"tQ"))
        with archive.open("archive/data/0", "w") as member:
            for _ in range(100):
                member.write(bytes(4 * 10**6))
    assert path.stat().st_size < 10**6
    assert "compressed" in refusal(path)


@pytest.mark.parametrize("order", [["0", "0"], [], ["1"], ["0", "1"], [0], "0", None, [["0"]]])
def test_order_of_other_storages(tmp_path: Path, save_pickle, tensor_pickle, order: object) -> None:
    save_pickle(tensor_pickle(6, 0, (6,), (1,)), tmp_path / "file", order, floats(6))
    assert "list of storages" in refusal(tmp_path / "file")


def test_deeply_nested_order(tmp_path: Path, save_pickle, tensor_pickle) -> None:
    """A comparison or a print of this list would need a very deep stack."""
    nested = b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."
    save_pickle(tensor_pickle(6, 0, (6,), (1,)) + nested, tmp_path / "file")
    assert "list of storages" in refusal(tmp_path / "file")


# ------------------------------------------------------------------------------------------------ damage


def test_truncation_anywhere(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(small_state(), path, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        refusal(path)


def test_bytes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(small_state(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + b"\0")
    refusal(path)


def test_no_flipped_bit_gives_another_kind_of_error(tmp_path: Path, new_format: bool) -> None:
    """Damage is refused, except in the numbers of the old format, which has no checksum. Damage never crashes."""
    path = tmp_path / "weights.pth"
    torch.save(small_state(), path, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        try:
            read_torch_file(path)
        except CheckpointError as error:
            assert str(error).isprintable()  # noqa: PT017


def test_flipped_bit_in_a_zip_number(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.full((1000,), 3.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 3.0) * 10) + 6] ^= 1
    path.write_bytes(data)
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


@pytest.mark.parametrize("state", [[torch.zeros(2)], {"a": 3}, {"a": {"b": torch.zeros(2)}}, {}, {3: torch.zeros(2)}])
def test_other_contents(tmp_path: Path, new_format: bool, state: object) -> None:
    torch.save(state, tmp_path / "file", _use_new_zipfile_serialization=new_format)
    refusal(tmp_path / "file")


def test_whole_module(tmp_path: Path, new_format: bool) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "file", _use_new_zipfile_serialization=new_format)
    assert "state_dict" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    "members",
    [
        ["archive/data.pkl", "archive/data.pkl"],
        ["archive/data.pkl", "/etc/data"],
        ["archive/data.pkl", "archive/../../x"],
        ["archive/data.pkl", "other/data.pkl"],
        ["data.pkl"],
        ["archive/version"],
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_odd_zips(tmp_path: Path, members: list[str]) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        for name in members:
            archive.writestr(name, pickle.dumps({}, protocol=2))
    refusal(tmp_path / "file")


def test_names_cannot_write_to_the_terminal(tmp_path: Path, new_format: bool) -> None:
    state = {"\x1b[2J\x1b]0;owned\x07" + "a" * 100_000 + str(i): "text" for i in range(50)}
    torch.save(state, tmp_path / "file", _use_new_zipfile_serialization=new_format)
    message = refusal(tmp_path / "file")
    assert r"\x1b[2J" in message
    assert len(message) < 3000


def test_path_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2Jweights.pth"
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    assert str(caught.value).isprintable()
    assert "weights.pth" in str(caught.value)
