"""Reading what torch.save wrote, from anyone: first looked through without running it, then read by torch.

There are two formats. Until torch 1.6 (and in the published weights): five pickles one after the other (magic number,
protocol, system, the state, the order of the storages), then for each storage its length in 8 bytes and its numbers
(`torch/serialization.py`, `_legacy_save`). Since then: an uncompressed zip with the state in `data.pkl` and a member
for each storage. Older still is a tar, and TorchScript is a zip with code: both are refused.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from seresnext.errors import CheckpointError
from seresnext.weights.names import MOST_TENSORS, listed, printable, shown_path
from seresnext.weights.opening import open_regular
from seresnext.weights.pickles import Description, StoredTensor, describe

_LONGEST_PICKLE = 16 << 20  # bytes; that of SE-ResNeXt-101 has 130 thousand
_FOLDER = 0x10  # what DOS calls a folder, among the attributes of a member of a zip
_LONGEST_DIRECTORY = 2 << 20  # bytes of a zip's list of members; that of SE-ResNeXt-101 has 50 thousand
# All that torch.save has ever put beside the storages, which have numbers for names.
_MEMBER = re.compile(
    r"data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]+"
)


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, on the CPU, by name. A training checkpoint's `state_dict` entry counts as one.

    Needs time and memory in proportion to the size of the file, whatever it claims. Raises CheckpointError, naming the
    file, for anything that is damaged or more than plain weights. Wrappers' prefixes are left on the names, and the
    numbers are not looked at: see `names` and `models.pretrained`.
    """
    with open_regular(path) as file:
        try:
            description = _scan(file)
            stored = _state_dict(description)
        except (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            # ValueError is how both scans and pickletools refuse, the others are how zipfile does.
            raise CheckpointError(f"{shown_path(path)} is refused: {printable(error, longest=1000)}") from error
        file.seek(0)
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch promises no class of errors for bad files.
            raise CheckpointError(f"{shown_path(path)} cannot be read: {printable(error, longest=1000)}") from error
    tensors = _unwrapped(loaded)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != {name: (tensor.shape, tensor.storage.dtype) for name, tensor in stored.items()}:
        raise CheckpointError(f"{shown_path(path)} is refused: torch reads other tensors from it than were announced")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _scan(file: BinaryIO) -> Description:
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _scan_zip(file)
    if start[257:262] == b"ustar":
        raise ValueError("it is a tar file, a format torch gave up in 2017; save its state dict again with torch.save")
    if not start.startswith(b"\x80"):
        raise ValueError("it is no file that torch.save wrote" if start else "it is empty")
    return _scan_pickles(file)


# Before torch 1.6


def _scan_pickles(file: BinaryIO) -> Description:
    size = os.fstat(file.fileno()).st_size
    pickles = io.BytesIO(file.read(_LONGEST_PICKLE))
    magic, protocol, system = (describe(pickles).value for _ in range(3))
    if magic != MAGIC_NUMBER or protocol != PROTOCOL_VERSION:
        raise ValueError("it is a pickle, but not one that torch.save wrote")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    description = describe(pickles)
    storages = description.storages
    order = describe(pickles).value
    if (
        not isinstance(order, list)
        or not all(isinstance(key, str) for key in order)
        or sorted(order) != sorted(storages)
    ):
        raise ValueError("its list of storages is not that of its tensors")
    position = pickles.tell()
    needed = position + sum(8 + storage.nbytes for storage in storages.values())
    if needed != size:
        raise ValueError(f"it has {size:,} bytes and what it declares takes {needed:,}: it was cut off or altered")
    for key in order:
        file.seek(position)
        numel = int.from_bytes(file.read(8), "little")
        if numel != storages[key].numel:
            raise ValueError(f"its storage {printable(key)} has {numel:,} elements, not {storages[key].numel:,}")
        position += 8 + storages[key].nbytes
    return description


# Since torch 1.6


def _scan_zip(file: BinaryIO) -> Description:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        folder = _check_members(archive)
        if archive.testzip() is not None:
            raise ValueError("its checksums are wrong: it was damaged")
        if members.get(f"{folder}/byteorder") and archive.read(f"{folder}/byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        description = describe(io.BytesIO(archive.read(f"{folder}/data.pkl")))
    data = f"{folder}/data/"
    sizes = {name.removeprefix(data): member.file_size for name, member in members.items() if name.startswith(data)}
    if sizes != {key: storage.nbytes for key, storage in description.storages.items()}:
        raise ValueError("its storages are not those of its tensors, or of another size")
    return description


def _check_directory(file: BinaryIO) -> None:
    """Refuse a zip in which two programs could find two lists of members, or one that is very long.

    Python takes the list that ends where its end record begins, torch's library the one that the record points to:
    what was looked through must be what torch reads. So the list ends at the record, which ends the file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 98))
    tail = file.read()
    record, locator, last = tail[-98:-42], tail[-42:-22], tail[-22:]
    if not last.startswith(b"PK\5\6"):
        raise ValueError("it is a zip that was cut off, or that something was added to")
    length, offset = struct.unpack_from("<LL", last, 12)
    end = size - 22
    if locator.startswith(b"PK\6\7"):  # Numbers of 64 bits, in a record of 56 bytes that a locator points to.
        end = struct.unpack_from("<Q", locator, 8)[0]
        length, offset = struct.unpack_from("<QQ", record, 40) if record.startswith(b"PK\6\6") else (0, 0)
        if end != size - 98:
            raise ValueError("it is a zip whose end is not where it says")
    if offset + length != end:
        raise ValueError("it is a zip with something between its parts, where a second one could hide")
    if length > _LONGEST_DIRECTORY:
        raise ValueError(
            f"its list of members has {length:,} bytes, and that of weights at most {_LONGEST_DIRECTORY:,}"
        )


def _check_members(archive: zipfile.ZipFile) -> str:
    """Refuse an archive that torch.save would not write. Returns the folder that all its members are in."""
    members = archive.infolist()
    names = [member.filename for member in members]
    size = os.fstat(archive.fp.fileno()).st_size if archive.fp else 0
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise ValueError("it is a compressed or encrypted zip; torch.save writes neither")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members take more bytes than it has")
    if any("code" in name.split("/")[1:] or name.endswith("/constants.pkl") for name in names):
        raise ValueError("it is a TorchScript archive, which is code; save the state dict of the model instead")
    folder, *others = {name.partition("/")[0] for name in names} or {""}
    # No name is twice there, also not in capitals, which torch's library takes for the same.
    odd = [name for name in names if not _MEMBER.fullmatch(name.removeprefix(f"{folder}/"))]
    if others or odd or len(set(names)) != len(names) or f"{folder}/data.pkl" not in names:
        raise ValueError("it is a zip, but not one that torch.save wrote")
    # For either torch's library reports success and writes nothing, so that tensors hold what memory held before
    # (miniz.c, `mz_zip_reader_extract_to_mem_no_alloc1`).
    if any(member.external_attr & _FOLDER or member.compress_size != member.file_size for member in members):
        raise ValueError("it is a zip with members that have no bytes, which torch would read as whatever is in memory")
    if archive.getinfo(f"{folder}/data.pkl").file_size > _LONGEST_PICKLE:
        raise ValueError(f"its pickle is longer than {_LONGEST_PICKLE:,} bytes")
    return folder


# What is inside


def _state_dict(description: Description) -> dict[str, StoredTensor]:
    value = description.value
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a dict of tensors")
    state = _unwrapped(value)
    if len(state) > MOST_TENSORS:
        raise ValueError(f"it has {len(state):,} entries, and no model here has more than {MOST_TENSORS:,} tensors")
    others = [
        f"{printable(name)} ({type(entry).__name__})"
        for name, entry in state.items()
        if not isinstance(name, str) or not isinstance(entry, StoredTensor)
    ]
    if others:
        raise ValueError(f"it has entries that are no tensors: {', '.join(listed(others, most=5))}")
    if not state:
        raise ValueError("it holds no tensors")
    # A storage seen through many tensors is one in the file and many in memory.
    if sum(t.nbytes for t in state.values()) > sum(s.nbytes for s in description.storages.values()):
        raise ValueError("its tensors share storages and are larger than the file")
    return state


def _unwrapped(value: dict[Any, Any]) -> dict[str, Any]:
    """A training checkpoint keeps the weights in one of its entries, `state_dict`, as the ImageNet example of torch."""
    inner = value.get("state_dict")
    return inner if isinstance(inner, dict) else value
