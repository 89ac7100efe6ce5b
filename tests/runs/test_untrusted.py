"""Files of attackers: each command refuses them with one readable message, in little time and memory.

Each case runs in a fork of one process (tests/resource_probe.py). A fork takes tenths of a second and shows how much
memory the case took. Each kind of file has a control: the same file does harm elsewhere.
"""

import functools
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resource_probe import Probe, assert_refused
from torch_files import HEAD, Touch, long, old_file, tensor_pickle

pytestmark = pytest.mark.runs

# ------------------------------------------------------------------------------------------------ code


def malicious(kind: str, canary: Path) -> bytes:
    """Return a file of weights that runs a command in a careless reader."""
    buffer = io.BytesIO()
    if kind == "torchscript":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("m/data.pkl", pickle.dumps(Touch(canary), protocol=2))
            archive.writestr("m/code/__torch__.py", "")
            archive.writestr("m/constants.pkl", pickle.dumps((), protocol=2))
    elif kind == "protocol 4":
        buffer.write(HEAD + pickle.dumps(Touch(canary), protocol=4) + pickle.dumps([], protocol=2))
    elif kind == "pickle":
        buffer.write(pickle.dumps(Touch(canary)))
    else:
        state = {"last_linear.weight": torch.ones(2), "more": Touch(canary)}
        torch.save(state, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


VALIDATE = ("validate.py", "--checkpoint", "FILE")
PREDICT = ("seresnext/__main__.py", "predict", "--checkpoint", "FILE", "IMAGES/val/class_0/0.jpg")
AVERAGE = ("seresnext/__main__.py", "average", "FILE", "none", "--output", "FOLDER/mean.safetensors")
TRAIN = ("train.py", "--recipe", "RECIPE", "--data", "IMAGES", "--output", "FOLDER/run", "--set", "model.weights=FILE")
LOAD = "import torch; torch.load(PATH, weights_only=False)"


@pytest.mark.parametrize(("kind", "command", "careless_reader"), [
    pytest.param("zip", TRAIN, LOAD, marks=pytest.mark.full),
    ("old", PREDICT, LOAD),
    ("protocol 4", AVERAGE, LOAD),
    ("torchscript", VALIDATE, "import pickle, zipfile; pickle.loads(zipfile.ZipFile(PATH).read('m/data.pkl'))"),
    ("pickle", PREDICT, "import pickle; pickle.load(open(PATH, 'rb'))"),
])  # fmt: skip
def test_no_command_runs_code(
    measure: Probe,
    images: Path,
    recipe: Path,
    tmp_path: Path,
    kind: str,
    command: tuple[str, ...],
    careless_reader: str,
) -> None:
    canary = tmp_path / "canary"
    for name in ("weights", "weights.safetensors", "weights.pth"):
        path = tmp_path / name
        path.write_bytes(malicious(kind, canary))
        places = {"FILE": path, "IMAGES": images, "FOLDER": tmp_path, "RECIPE": recipe}
        words = [functools.reduce(lambda word, at: word.replace(at, str(places[at])), places, word) for word in command]
        assert_refused(measure(*words), megabytes=400 if command == TRAIN else 100)
        assert not canary.exists()
    measure("-c", careless_reader.replace("PATH", repr(str(path))))  # The control.
    assert canary.exists()


# ------------------------------------------------------------------------------------------------ memory


def deflated() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(50_000_000)}, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    return packed.getvalue()


def keys(count: int) -> bytes:
    """Return the instructions of a dict."""
    return b"\x80\x02}(" + b"".join(b"X\x07\0\0\0%07dN" % number for number in range(count)) + b"u"


def of_numbers(before: bytes, after: bytes, numel: int = 10**6) -> bytes:
    """Return a file with a storage of floats, and with instructions before and after the storage."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + long(numel) + b"tQ"
    return old_file(b"\x80\x02" + before + storage + after, ["0"], struct.pack("<q", numel) + bytes(4 * numel))


def tensors(dimensions: int) -> bytes:
    once = b"K\0(" + b"K\1" * dimensions + b"tq\1h\1tq\2"
    return of_numbers(b"ctorch._utils\n_rebuild_tensor\nq\0(", once + b"h\0h\2R" * 200_000 + b".", numel=1)


def members(count: int) -> bytes:
    """Return a zip with many members at one place of the file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.filelist += archive.filelist * count
    return buffer.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "bytearray": lambda: old_file(b"\x80\x02cbuiltins\nbytearray\n" + long(600_000_000) + b"\x85R.", []),
    "tensor": lambda: old_file(b"\x80\x02ctorch\nTensor\n" + long(150_000_000) + b"\x85R.", []),
    "deflated": deflated,
    "stride 0": lambda: old_file(tensor_pickle(1, 0, (30_000, 30_000), (0, 0)), ["0"], struct.pack("<q", 1) + bytes(4)),
    "storage": lambda: old_file(tensor_pickle(10**9, 0, (10**9,), (1,)), ["0"], bytes(12)),
    "a million keys": lambda: old_file(keys(10**6) + b"."),
    "keys up to the limit for a file": lambda: old_file(keys(80_000) + b"."),
    "copies of a dict": lambda: old_file(
        keys(1000) + b"q\0cargparse\nNamespace\nq\1" + b"h\1)\x81h\0b" * 100_000 + b"."
    ),
    "a tensor as arguments": lambda: of_numbers(b"ctorch._utils\n_rebuild_parameter\n", b"R."),
    "a tensor as arguments of a class": lambda: of_numbers(b"cargparse\nNamespace\n", b"\x81."),
    "lists in lists as an index": lambda: of_numbers(
        b"", b"q\1](K\0K\1eq\0" + b"](h\0h\0eq\0" * 24 + b"h\1h\0\x85K\0s."
    ),
    "tensors of 5 dimensions": lambda: tensors(5),
    "tensors of 16 dimensions": lambda: tensors(16),
    "members of a zip": lambda: members(300_000),
    "marks": lambda: old_file(b"\x80\x02" + b"(" * 999_000 + b"."),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_little(measure: Probe, tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(BOMBS[bomb]())
    assert_refused(measure("validate.py", "--checkpoint", path), megabytes=160, seconds=10)


@pytest.mark.full
@pytest.mark.parametrize(
    ("bomb", "use"),
    [("bytearray", "x"), ("tensor", "x.zero_()"), ("deflated", "x['w'].sum()"), ("stride 0", "x['w'].contiguous()")],
)
def test_torch_lets_it_take_much(measure: Probe, tmp_path: Path, bomb: str, use: str) -> None:
    """The control, with `weights_only=True`."""
    path = tmp_path / "weights.pth"
    path.write_bytes(BOMBS[bomb]())
    assert path.stat().st_size < 300_000
    result = measure("-c", f"import torch; x = torch.load({str(path)!r}, weights_only=True); {use}")
    assert result.returncode == 0, result.output
    assert result.megabytes > 190


def safetensors(header: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", length or len(header)) + header.encode()


EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
HEADERS: dict[str, Callable[[], str]] = {
    "a million tensors": lambda: "{" + ",".join(f'"{number}":{EMPTY}' for number in range(10**6)) + "}",
    "tensors up to the limit": lambda: "{" + ",".join(f'"{number}":{EMPTY}' for number in range(240_000)) + "}",
    "metadata": lambda: '{"__metadata__":{' + ",".join(f'"{number:x}":""' for number in range(1_200_000)) + "}}",
    "100 MB of it": lambda: '{"__metadata__":{"a":"' + "x" * (100 << 20) + '"}}',
    "nesting": lambda: '{"a":' * 1_000_000,
    "dimensions": lambda: f'{{"a":{EMPTY.replace("[0]", "[" + "1," * 3_000_000 + "0]")}}}',
    "names": lambda: f'{{"\\u001b[2J{"x" * 10**6}":{EMPTY}}}',
}


@pytest.mark.parametrize("header", [*HEADERS, "a length that lies"])
def test_a_header_takes_little(measure: Probe, tmp_path: Path, header: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(HEADERS[header]()) if header in HEADERS else safetensors("{}", 2**63))
    assert_refused(measure("validate.py", "--checkpoint", path), megabytes=160, seconds=10)


@pytest.mark.full
def test_the_library_lets_a_header_take_much(measure: Probe, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(HEADERS["metadata"]()))
    program = f"import safetensors; f = safetensors.safe_open({str(path)!r}, 'pt'); f.metadata()"
    assert measure("-c", program).megabytes > 300
