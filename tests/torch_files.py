"""Writers of the old torch format: for files like the published files, and for hostile files."""

import io
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
HEAD = b"".join(pickle.dumps(value, protocol=2) for value in (MAGIC, 1001, SYSTEM))


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


class _Stored(NamedTuple):
    tensor: torch.Tensor


def save_as_published(tensors: Mapping[str, torch.Tensor], path: Path, v2: bool) -> None:
    """Write a file like the published files: 50 and 101 without v2, 26 with v2."""
    state = io.BytesIO()
    pickler = _StatePickler(state, v2)
    pickler.dump(OrderedDict(tensors))
    with path.open("wb") as file:
        file.write(HEAD + state.getvalue() + pickle.dumps(sorted(pickler.storages), protocol=2))
        for _, tensor in sorted(pickler.storages.items()):
            file.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())


def old_file(state: bytes, keys: object = None, storages: bytes = b"") -> bytes:
    """Return an old file with any bytes as the pickle."""
    return HEAD + state + pickle.dumps(keys, protocol=2) + storages


def long(number: int) -> bytes:
    """Return the instruction of a whole number."""
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


def tensor_pickle(numel: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Return the pickle of `{"w": tensor}` of a float storage with the key "0"."""
    storage = b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + long(numel)
    sizes = b"".join(b"(" + b"".join(map(long, values)) + b"t" for values in (shape, stride))
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"NtQ" + long(offset) + sizes + b"\x89}tR"
    return b"\x80\x02}X\x01\0\0\0w" + rebuilt + b"s."


class Touch:
    """An object whose unpickling creates a file."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch {canary}"

    def __reduce__(self) -> object:
        return os.system, (self.command,)
