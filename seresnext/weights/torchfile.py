"""Reading files of torch.save from anyone: the pickle is described without running code, then the numbers are read.

There are two formats. Before torch 1.6, and in the published weights: five pickles one after the other (magic number,
protocol, system, the state, the order of the storages), then each storage as the length in 8 bytes and the numbers
(`torch/serialization.py`, `_legacy_save`). Since torch 1.6: an uncompressed zip with the state in `data.pkl` and a
member for each storage. torch.load is not used: a second reader could find another content in the same bytes.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from seresnext.errors import CheckpointError
from seresnext.printable import listed, printable, shown_path
from seresnext.weights.names import MOST_TENSORS
from seresnext.weights.opening import open_file
from seresnext.weights.pickles import Namespace, Storage, StoredTensor, describe

_LONGEST_PICKLE = 16 << 20  # bytes; the pickle of SE-ResNeXt-101 has 130 thousand
_LONGEST_DIRECTORY = 2 << 20  # bytes of a zip's list of members; the list of SE-ResNeXt-101 has 50 thousand

# The entries of training checkpoints: `state_dict` of timm and of torch's ImageNet example, `model` of torchvision's
# references (https://github.com/pytorch/vision/blob/main/references/classification/train.py).
_ENTRIES = {"ema": ("state_dict_ema", "model_ema"), "model": ("state_dict", "model")}
_AVERAGED = "n_averaged"  # a counter in torchvision's `model_ema`


class WeightsFile(NamedTuple):
    """The weights of a file. `weights` is `ema` for an average, otherwise `model`.

    `metadata` are those of a checkpoint of this project. `arguments` are those of another project's training script.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    weights: str
    arguments: dict[Any, Any]


def read_torch_file(path: Path, weights: str | None = None) -> WeightsFile:
    """Return the tensors of a state dict, on the CPU, by name. The dict can be an entry of a training checkpoint.

    `weights` is `ema` or `model`. By default the average of a training checkpoint is taken if there is one, as in timm.

    Time and memory are proportional to the size of the file, also if the file announces more. Raise CheckpointError,
    which names the file, for a file that is damaged or has more than plain weights. Names keep the prefixes of wrappers
    (see `names`), and numbers are not checked (see `models.pretrained`).
    """
    with open_file(path) as file:
        try:
            start = file.read(4)
            if not start.startswith((b"PK\x03\x04", b"\x80")):
                raise ValueError("not a file of torch.save; give a file of weights" if start else "the file is empty")
            file.seek(0)
            found, numbers = (_read_zip if start.startswith(b"PK") else _read_pickles)(file, weights)
        except (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            # ValueError comes from this module and pickletools, the other errors from zipfile.
            raise CheckpointError(f"{shown_path(path)} is refused: {printable(error, longest=1000)}") from error
    tensors = {
        name: numbers[tensor.storage.key].as_strided(tensor.shape, tensor.stride, tensor.offset)
        for name, tensor in found.state.items()
    }
    return WeightsFile(tensors, {}, found.weights, found.arguments)


class _State(NamedTuple):
    state: dict[str, StoredTensor]
    weights: str
    arguments: dict[Any, Any]


def _read_pickles(file: BinaryIO, weights: str | None) -> tuple[_State, dict[str, Tensor]]:
    """Return the tensors of a file before torch 1.6, and the numbers of each storage."""
    size = os.fstat(file.fileno()).st_size
    pickles = io.BytesIO(file.read(_LONGEST_PICKLE))
    magic, protocol, system = (describe(pickles)[0] for _ in range(3))
    if magic != MAGIC_NUMBER or protocol != PROTOCOL_VERSION:
        raise ValueError("a pickle, but not a pickle of torch.save")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("the file was written on a big-endian machine; save the weights on another machine")
    value, storages = describe(pickles)
    order, _ = describe(pickles)
    are_keys = isinstance(order, list) and all(isinstance(key, str) for key in order)
    if not are_keys or sorted(order) != sorted(storages):
        raise ValueError("the list of storages differs from the storages of the tensors")
    needed = pickles.tell() + sum(8 + storage.nbytes for storage in storages.values())
    if needed != size:
        raise ValueError(f"the file has {size:,} bytes and announces {needed:,}: the file was cut off or changed")
    found = _state_dict(value, storages, weights)
    numbers = {}
    file.seek(pickles.tell())
    for key in order:
        if (numel := int.from_bytes(file.read(8), "little")) != storages[key].numel:
            raise ValueError(f"the storage {printable(key)} has {numel:,} elements, not {storages[key].numel:,}")
        numbers[key] = _numbers(storages[key], file)
    return found, numbers


def _read_zip(file: BinaryIO, weights: str | None) -> tuple[_State, dict[str, Tensor]]:
    """Return the tensors of a file since torch 1.6, and the numbers of each storage. `zipfile` checks the checksums."""
    size = os.fstat(file.fileno()).st_size
    end = zipfile._EndRecData(file)  # pyright: ignore[reportAttributeAccessIssue] (the record that ZipFile uses)
    if end and end[zipfile._ECD_SIZE] > _LONGEST_DIRECTORY:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"the list of members is too long; weights have at most {_LONGEST_DIRECTORY:,} bytes of it")
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members.values()):
            raise ValueError("a compressed or encrypted zip; torch.save writes neither")
        if sum(member.file_size for member in members.values()) > size:
            raise ValueError("the members take more bytes than the file has")
        folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("a zip, but not a zip of torch.save")
        folder = folders[0]
        if members[f"{folder}data.pkl"].file_size > _LONGEST_PICKLE:
            raise ValueError(f"the pickle is longer than {_LONGEST_PICKLE:,} bytes")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("the file was written on a big-endian machine; save the weights on another machine")
        value, storages = describe(io.BytesIO(archive.read(f"{folder}data.pkl")))
        found = _state_dict(value, storages, weights)
        needed = {tensor.storage.key for tensor in found.state.values()}
        numbers = {}
        for key, storage in storages.items():
            member = members.get(f"{folder}data/{key}")
            if member is None or member.file_size != storage.nbytes:
                raise ValueError("the storages differ from the storages of the tensors, in name or size")
            if key not in needed:  # for example of the optimizer
                continue
            with archive.open(member) as content:
                numbers[key] = _numbers(storage, content)
    return found, numbers


def _numbers(storage: Storage, file: Any) -> Tensor:
    data = torch.empty(storage.numel, dtype=storage.dtype)
    if file.readinto(data.view(torch.uint8).numpy()) != storage.nbytes:
        raise ValueError("the file was cut off")
    return data


def _state_dict(value: Any, storages: dict[str, Storage], weights: str | None) -> _State:
    if not isinstance(value, dict):
        raise ValueError(f"the file holds a {type(value).__name__}, not a dict of tensors; save a state dict")
    kinds = ("model",) if weights == "model" else ("ema", "model")
    names = [(kind, name) for kind in kinds for name in _ENTRIES[kind] if isinstance(value.get(name), dict)]
    kind, state = (names[0][0], value[names[0][1]]) if names else ("model", value)
    state = {name: entry for name, entry in state.items() if kind == "model" or name != _AVERAGED}
    if len(state) > MOST_TENSORS:
        raise ValueError(f"the file has {len(state):,} entries; no model here has more than {MOST_TENSORS:,} tensors")
    others = [
        f"{printable(name)} ({type(entry).__name__})"
        for name, entry in state.items()
        if not isinstance(name, str) or not isinstance(entry, StoredTensor)
    ]
    if others:
        raise ValueError(f"entries are no tensors: {', '.join(listed(others, most=5))}; save the state dict alone")
    if not state:
        raise ValueError("the file holds no tensors")
    # Many tensors can share one storage in the file. In a model each tensor has its own.
    if sum(t.nbytes for t in state.values()) > sum(s.nbytes for s in storages.values()):
        raise ValueError("the tensors share storages and are larger than the file")
    arguments = value.get("args")
    return _State(state, kind, arguments.values if isinstance(arguments, Namespace) else {})
