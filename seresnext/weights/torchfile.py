"""Reading files of torch.save from anyone: the pickle is read without running code, then the numbers are read.

There are two formats. Before torch 1.6, and in the published weights: five pickles one after the other (magic number,
protocol, system, the state, the order of the storages), then each storage as the length in 8 bytes and the numbers
(`torch/serialization.py`, `_legacy_save`). Since torch 1.6: an uncompressed zip with the state in `data.pkl` and a
member for each storage. torch.load is not used: a second reader could find another content in the same bytes.
"""

import io
import os
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import _ECD_SIZE, _EndRecData  # pyright: ignore[reportAttributeAccessIssue] (ZipFile uses both)

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from seresnext.errors import CheckpointError, listed, printable, shown_path
from seresnext.files import open_weights_file
from seresnext.weights.names import MOST_TENSORS
from seresnext.weights.pickles import load_pickle

# Bytes. A checkpoint of SE-ResNeXt-101 with average and AdamW has 300 thousand. The value takes up to 130 times more.
_LONGEST_PICKLE = 1 << 20
_LONGEST_LIST = 2 << 20  # bytes of a zip's list of members; a file with a long name has 500 thousand

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
    with open_weights_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            start = file.read(4)
            if not start.startswith((b"PK\x03\x04", b"\x80")):
                raise ValueError("not a file of torch.save" if start else "the file is empty")
            file.seek(0)
            value = (_read_zip if start.startswith(b"PK") else _read_pickles)(file, size)
            return _select(value, size, weights)
        except Exception as error:  # zipfile and torch raise errors of many classes for damaged files.
            raise CheckpointError(
                f"{shown_path(path)} is refused: {printable(error, longest=1000)}; give another file, or save the "
                "state dict alone with torch.save"
            ) from error


def _read_pickles(file: BinaryIO, size: int) -> Any:
    """Return the value in a file before torch 1.6."""
    pickles = io.BytesIO(file.read(_LONGEST_PICKLE))
    magic, protocol, _ = (load_pickle(pickles)[0] for _ in range(3))
    if magic != MAGIC_NUMBER or protocol != PROTOCOL_VERSION:
        raise ValueError("a pickle, but not a pickle of torch.save")
    value, storages = load_pickle(pickles, size)
    order, _ = load_pickle(pickles)
    are_keys = isinstance(order, list) and all(isinstance(key, str) for key in order)
    if not are_keys or len(order) != len(storages) or set(order) != storages.keys():
        raise ValueError("the list of storages differs from the storages of the tensors")
    file.seek(pickles.tell())
    for key in order:
        if (length := file.read(8)) != len(storages[key]).to_bytes(8, "little"):
            numel = int.from_bytes(length, "little")
            raise ValueError(f"the storage {printable(key)} has {numel:,} elements, not {len(storages[key]):,}")
        _fill(storages[key], file)
    if file.read(1):
        raise ValueError("the file has more bytes than the tensors; it was changed")
    return value


def _read_zip(file: BinaryIO, size: int) -> Any:
    """Return the value in a file since torch 1.6. `zipfile` checks the checksums."""
    end = _EndRecData(file)
    if end and end[_ECD_SIZE] > _LONGEST_LIST:
        raise ValueError(f"the list of members has more than {_LONGEST_LIST:,} bytes")
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError("a compressed zip; torch.save does not compress")
        folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("a zip, but not a zip of torch.save")
        folder = folders[0]
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("the file was written on a big-endian machine")
        with archive.open(f"{folder}data.pkl") as content:
            value, storages = load_pickle(io.BytesIO(content.read(_LONGEST_PICKLE)), size)
        for key, storage in storages.items():
            member = members.get(f"{folder}data/{key}")
            if member is None or member.file_size != storage.nbytes:
                raise ValueError("the storages differ from the storages of the tensors, in name or size")
            with archive.open(member) as content:
                _fill(storage, content)
    return value


def _fill(storage: Tensor, file: Any) -> None:
    """Read the numbers of a storage."""
    if file.readinto(storage.view(torch.uint8).numpy()) != storage.nbytes:
        raise ValueError("the file was cut off")


def _select(value: Any, size: int, weights: str | None) -> WeightsFile:
    """Return the weights in a value: the state dict itself, or an entry of a training checkpoint."""
    if not isinstance(value, dict):
        raise ValueError(f"the file holds a {type(value).__name__}, not a dict of tensors")
    kinds = ("model",) if weights == "model" else ("ema", "model")
    names = [(kind, name) for kind in kinds for name in _ENTRIES[kind] if isinstance(value.get(name), dict)]
    kind, state = (names[0][0], value[names[0][1]]) if names else ("model", value)
    state = {name: entry for name, entry in state.items() if kind == "model" or name != _AVERAGED}
    others = [
        f"{printable(name)} ({type(entry).__name__})"
        for name, entry in state.items()
        if not isinstance(name, str) or not isinstance(entry, Tensor)
    ]
    if others:
        raise ValueError(f"entries are no tensors: {', '.join(listed(others, most=5))}")
    if not 0 < len(state) <= MOST_TENSORS:
        raise ValueError(f"the file holds {len(state):,} tensors, not 1 to {MOST_TENSORS:,}")
    # Many tensors can share one storage in the file. In a model each tensor has its own.
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > size:
        raise ValueError("the tensors share storages and are larger than the file")
    arguments = value.get("args")
    return WeightsFile(state, {}, kind, vars(arguments) if isinstance(arguments, Namespace) else {})
