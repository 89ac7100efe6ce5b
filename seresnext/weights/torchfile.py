"""Reading files of torch.save from anyone: first scanned without running any code, then read by torch.

There are two formats. Before torch 1.6, and in the published weights: five pickles one after the other (magic number,
protocol, system, the state, the order of the storages), then each storage as the length in 8 bytes and the numbers
(`torch/serialization.py`, `_legacy_save`). Since torch 1.6: an uncompressed zip with the state in `data.pkl` and a
member for each storage. The oldest format, a tar, and TorchScript, a zip with code, are refused.
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
from seresnext.printable import listed, printable, shown_path
from seresnext.weights.names import MOST_TENSORS
from seresnext.weights.opening import open_file
from seresnext.weights.pickles import Description, StoredTensor, describe

_LONGEST_PICKLE = 16 << 20  # bytes; the pickle of SE-ResNeXt-101 has 130 thousand
_FOLDER = 0x10  # the attribute of DOS folders, for a member of a zip
_LONGEST_DIRECTORY = 2 << 20  # bytes of a zip's list of members; the list of SE-ResNeXt-101 has 50 thousand
# All members that any torch.save writes. The names of storages are numbers.
_MEMBER = re.compile(
    r"data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]+"
)


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, on the CPU, by name. The dict can be the entry `state_dict` of another dict.

    Time and memory are proportional to the size of the file, also if the file announces more. Raise CheckpointError,
    which names the file, for a file that is damaged or has more than plain weights. Names keep the prefixes of wrappers
    (see `names`), and numbers are not checked (see `models.pretrained`).
    """
    with open_file(path) as file:
        try:
            description = _scan(file)
            stored = _state_dict(description)
        except (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            # ValueError comes from both scans and pickletools, the other errors from zipfile.
            raise CheckpointError(f"{shown_path(path)} is refused: {printable(error, longest=1000)}") from error
        file.seek(0)
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch documents no class of errors for bad files.
            raise CheckpointError(f"{shown_path(path)} cannot be read: {printable(error, longest=1000)}") from error
    tensors = _unwrapped(loaded)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != {name: (tensor.shape, tensor.storage.dtype) for name, tensor in stored.items()}:
        raise CheckpointError(f"{shown_path(path)} is refused: torch reads other tensors than the scan found")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _scan(file: BinaryIO) -> Description:
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _scan_zip(file)
    if start[257:262] == b"ustar":
        raise ValueError("a tar file, a format that torch gave up in 2017; save the state dict again with torch.save")
    if not start.startswith(b"\x80"):
        raise ValueError("not a file of torch.save; give a file of weights" if start else "the file is empty")
    return _scan_pickles(file)


# Files before torch 1.6


def _scan_pickles(file: BinaryIO) -> Description:
    size = os.fstat(file.fileno()).st_size
    pickles = io.BytesIO(file.read(_LONGEST_PICKLE))
    magic, protocol, system = (describe(pickles).value for _ in range(3))
    if magic != MAGIC_NUMBER or protocol != PROTOCOL_VERSION:
        raise ValueError("a pickle, but not a pickle of torch.save")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("the file was written on a big-endian machine; save the weights on another machine")
    description = describe(pickles)
    storages = description.storages
    order = describe(pickles).value
    if (
        not isinstance(order, list)
        or not all(isinstance(key, str) for key in order)
        or sorted(order) != sorted(storages)
    ):
        raise ValueError("the list of storages differs from the storages of the tensors")
    position = pickles.tell()
    needed = position + sum(8 + storage.nbytes for storage in storages.values())
    if needed != size:
        raise ValueError(f"the file has {size:,} bytes and announces {needed:,}: the file was cut off or changed")
    for key in order:
        file.seek(position)
        numel = int.from_bytes(file.read(8), "little")
        if numel != storages[key].numel:
            raise ValueError(f"the storage {printable(key)} has {numel:,} elements, not {storages[key].numel:,}")
        position += 8 + storages[key].nbytes
    return description


# Files since torch 1.6


def _scan_zip(file: BinaryIO) -> Description:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        folder = _check_members(archive)
        if archive.testzip() is not None:
            raise ValueError("the checksums are wrong: the file is damaged")
        if members.get(f"{folder}/byteorder") and archive.read(f"{folder}/byteorder") != b"little":
            raise ValueError("the file was written on a big-endian machine; save the weights on another machine")
        description = describe(io.BytesIO(archive.read(f"{folder}/data.pkl")))
    data = f"{folder}/data/"
    sizes = {name.removeprefix(data): member.file_size for name, member in members.items() if name.startswith(data)}
    if sizes != {key: storage.nbytes for key, storage in description.storages.items()}:
        raise ValueError("the storages differ from the storages of the tensors, in name or size")
    return description


def _check_directory(file: BinaryIO) -> None:
    """Raise ValueError for a zip with a very long list of members, or with possibly two lists.

    Python takes the list that ends where the end record begins. torch's library takes the list that the record points
    to. Both must read the same list: the list must end at the record, and the record must end the file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 98))
    tail = file.read()
    record, locator, last = tail[-98:-42], tail[-42:-22], tail[-22:]
    if not last.startswith(b"PK\5\6"):
        raise ValueError("a zip that was cut off, or has bytes after the end")
    length, offset = struct.unpack_from("<LL", last, 12)
    end = size - 22
    if locator.startswith(b"PK\6\7"):  # 64-bit numbers, in a record of 56 bytes that a locator points to.
        end = struct.unpack_from("<Q", locator, 8)[0]
        length, offset = struct.unpack_from("<QQ", record, 40) if record.startswith(b"PK\6\6") else (0, 0)
        if end != size - 98:
            raise ValueError("a zip whose end record is not at the recorded place")
    if offset + length != end:
        raise ValueError("a zip with extra bytes between the parts, which could hide a second list of members")
    if length > _LONGEST_DIRECTORY:
        raise ValueError(f"the list of members has {length:,} bytes; weights have at most {_LONGEST_DIRECTORY:,}")


def _check_members(archive: zipfile.ZipFile) -> str:
    """Return the folder of all members. Raise ValueError for an archive that torch.save does not write."""
    members = archive.infolist()
    names = [member.filename for member in members]
    size = os.fstat(archive.fp.fileno()).st_size if archive.fp else 0
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise ValueError("a compressed or encrypted zip; torch.save writes neither")
    if sum(member.file_size for member in members) > size:
        raise ValueError("the members take more bytes than the file has")
    if any("code" in name.split("/")[1:] or name.endswith("/constants.pkl") for name in names):
        raise ValueError("a TorchScript archive, which has code; save the state dict of the model instead")
    folder, *others = {name.partition("/")[0] for name in names} or {""}
    # torch's library ignores case in names, so no name may occur twice, and no name may have capitals.
    odd = [name for name in names if not _MEMBER.fullmatch(name.removeprefix(f"{folder}/"))]
    if others or odd or len(set(names)) != len(names) or f"{folder}/data.pkl" not in names:
        raise ValueError("a zip, but not a zip of torch.save")
    # For these members torch's library reports success and writes nothing, so the tensors keep the old content of
    # memory (miniz.c, `mz_zip_reader_extract_to_mem_no_alloc1`).
    if any(member.external_attr & _FOLDER or member.compress_size != member.file_size for member in members):
        raise ValueError("a zip with members without bytes; torch would return old content of memory for these")
    if archive.getinfo(f"{folder}/data.pkl").file_size > _LONGEST_PICKLE:
        raise ValueError(f"the pickle is longer than {_LONGEST_PICKLE:,} bytes")
    return folder


# The content


def _state_dict(description: Description) -> dict[str, StoredTensor]:
    value = description.value
    if not isinstance(value, dict):
        raise ValueError(f"the file holds a {type(value).__name__}, not a dict of tensors; save a state dict")
    state = _unwrapped(value)
    if len(state) > MOST_TENSORS:
        raise ValueError(f"the file has {len(state):,} entries; no model here has more than {MOST_TENSORS:,} tensors")
    others = [
        f"{printable(name)} ({type(entry).__name__})"
        for name, entry in state.items()
        if not isinstance(name, str) or not isinstance(entry, StoredTensor)
    ]
    if others:
        raise ValueError(
            f"the file has entries that are no tensors: {', '.join(listed(others, most=5))}; save the state dict alone"
        )
    if not state:
        raise ValueError("the file holds no tensors")
    # Many tensors can share one storage in the file. In memory each tensor has its own.
    if sum(t.nbytes for t in state.values()) > sum(s.nbytes for s in description.storages.values()):
        raise ValueError("the tensors share storages and are larger than the file")
    return state


def _unwrapped(value: dict[Any, Any]) -> dict[str, Any]:
    """Return the entry `state_dict` if there is one, as in the checkpoints of torch's ImageNet example."""
    inner = value.get("state_dict")
    return inner if isinstance(inner, dict) else value
