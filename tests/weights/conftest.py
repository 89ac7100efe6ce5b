"""Writers of the old torch format: for files like the published files, and for hostile files."""

import gc
import io
import pickle
import resource
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class _StatePickler(pickle.Pickler):
    """A pickler that writes tensors like torch 0.3 (`_rebuild_tensor`) or like torch 0.4 (`_rebuild_tensor_v2`)."""

    def __init__(self, file: io.BytesIO, v2: bool) -> None:
        super().__init__(file, protocol=2)
        self.v2 = v2
        self.storages: dict[str, torch.Tensor] = {}

    def reducer_override(self, obj: object) -> object:
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        arguments = (_Stored(obj), 0, tuple(obj.shape), obj.stride())
        if self.v2:  # requires_grad and hooks
            return torch._utils._rebuild_tensor_v2, (*arguments, False, OrderedDict())
        return torch._utils._rebuild_tensor, arguments

    def persistent_id(self, obj: object) -> object:
        if not isinstance(obj, _Stored):
            return None
        # Keys were addresses, of 14 digits on Linux. The length of a key counts in the size of the file.
        key = str(10**13 + len(self.storages))
        self.storages[key] = obj.tensor
        kind = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}[obj.tensor.dtype]
        return ("storage", kind, key, "cpu", obj.tensor.numel(), None)


class _Stored:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@pytest.fixture(scope="session")
def save_as_published() -> Callable[..., None]:
    """Return `save(tensors, path, v2)`, which writes like the published files: 50 and 101 without v2, 26 with v2."""

    def save(tensors: Mapping[str, torch.Tensor], path: Path, v2: bool) -> None:
        with path.open("wb") as file:
            for value in (MAGIC, 1001, SYSTEM):
                pickle.dump(value, file, protocol=2)
            state = io.BytesIO()
            pickler = _StatePickler(state, v2)
            pickler.dump(OrderedDict(tensors))
            file.write(state.getvalue())
            pickle.dump(sorted(pickler.storages), file, protocol=2)
            for key in sorted(pickler.storages):
                tensor = pickler.storages[key]
                file.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())

    return save


@pytest.fixture(scope="session")
def save_pickle() -> Callable[..., None]:
    """Return `save(state, path, keys=None, storages=b"")`, which writes an old file with any bytes as the pickle."""

    def save(state: bytes, path: Path, keys: object = None, storages: bytes = b"") -> None:
        head = b"".join(pickle.dumps(value, protocol=2) for value in (MAGIC, 1001, SYSTEM))
        path.write_bytes(head + state + pickle.dumps(keys, protocol=2) + storages)

    return save


@pytest.fixture
def tensor_pickle() -> Callable[..., bytes]:
    """Return `tensor_pickle(numel, offset, shape, stride)`: `{"w": tensor}` of a float storage with the key "0"."""

    def whole(number: int) -> bytes:
        return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(whole(value) for value in values) + b"t"

    def make(numel: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
        storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + whole(
            numel
        )
        arguments = b"(" + storage + b"NtQ" + whole(offset) + numbers(shape) + numbers(stride) + b"\x89}t"
        return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."

    return make


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit the address space to 300 MB more than now."""
    gc.collect()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
