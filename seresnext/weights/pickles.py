"""The content of a torch pickle, found without executing the pickle.

A pickle is a program for a stack machine, and most instructions exist to import and call things. torch.save needs few
instructions to write a dict of tensors. This module reads a pickle with Python's own unpickler, limited to these
instructions and to a dozen global names. Nothing is imported: a global is only a name, and a call of a global gives a
description of the place of the numbers. Sizes are checked before a byte is allocated for a tensor.

`torch/_weights_only_unpickler.py` allows more, for example `bytearray` and `torch.Tensor`: a file of a few hundred
bytes can then take any amount of memory.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import warnings
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch

from seresnext.printable import printable

# The published SE-ResNeXt-101 takes 23,000 instructions.
_MOST_INSTRUCTIONS = 1_000_000
_MOST_DIMENSIONS = 16
_LONGEST_DIMENSION = 2**31 - 1
# fmt: off
_INSTRUCTIONS = {
    "PROTO", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "BINPERSID",
    "REDUCE", "BUILD", "NEWOBJ",
}
# fmt: on

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
# torch before 0.4 writes `_rebuild_tensor`, as in the published files of SE-ResNeXt-50 and 101.
_FUNCTIONS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
_NAMESPACE = "argparse.Namespace"  # the arguments of the training script, in checkpoints of timm and torchvision


# The values below are tuples, because the instruction BUILD can set attributes of most other objects.


class Storage(NamedTuple):
    """A sequence of numbers in the file, with the key of the sequence."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class StoredTensor(NamedTuple):
    """A tensor: a whole storage or a part. `offset` and `stride` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.storage.dtype.itemsize * math.prod(self.shape)


class Namespace:
    """The attributes of an `argparse.Namespace`, as plain data."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ValueError("the arguments of the training script are no dict")
        self.values = state


def describe(stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle: the value, with `StoredTensor` for tensors, and all storages by key. Raise ValueError."""
    start = stream.tell()
    with warnings.catch_warnings(action="ignore"):  # The decoder warns of backslashes.
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count == _MOST_INSTRUCTIONS:
                raise ValueError(f"the pickle has more than {_MOST_INSTRUCTIONS:,} instructions")
            if opcode.name not in _INSTRUCTIONS:
                raise ValueError(f"the pickle has the instruction {opcode.name}, unlike weights; save the state_dict")
            if opcode.name == "PROTO" and argument != 2:
                raise ValueError(f"the pickle has protocol {argument}; torch.save writes 2")
    stream.seek(start)
    unpickler = _Unpickler(stream)
    try:
        return unpickler.load(), unpickler.storages
    except ValueError:
        raise
    except Exception as error:  # The unpickler raises errors of many classes for a missing operand.
        raise ValueError(f"the pickle is damaged: {printable(repr(error))}") from error


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, in the version that is written in Python, with dicts that check each key."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}

    def load_empty_dictionary(self) -> None:
        self.append(_Dict())  # pyright: ignore[reportAttributeAccessIssue]

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def load_newobj(self) -> None:
        arguments, made = self.stack.pop(), self.stack.pop()  # pyright: ignore[reportAttributeAccessIssue]
        if made != _Global(_NAMESPACE) or arguments != ():
            raise ValueError("the pickle creates an object; plain weights have none")
        self.append(Namespace())  # pyright: ignore[reportAttributeAccessIssue]

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def find_class(self, module: str, name: str) -> _Global:
        found = _Global(f"{module}.{name}")
        if found.name not in _FUNCTIONS and found.name not in _DTYPES and found.name != _NAMESPACE:
            raise ValueError(
                f"the pickle would import {printable(found.name)}, which weights do not need; "
                "if the file is a training checkpoint that you trust, save the state_dict alone"
            )
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage of a persistent id `("storage", type, key, device, numel)`.

        Files that are not zip have a sixth value, None except for views of storages, which torch gave up before 1.0.
        """
        match pid:
            case ("storage", _Global(name=kind), str(key), str(), int(numel), *rest) if kind in _DTYPES:
                pass
            case _:
                raise ValueError("the pickle refers to an outside object that is no storage")
        if rest not in ([], [None]) or numel < 0:
            raise ValueError(f"the storage {printable(key)} is a view of another or has a negative size")
        storage = Storage(key, _DTYPES[kind], numel)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {printable(key)} is declared twice, with different sizes or types")
        return storage


class _Dict(dict[Any, Any]):
    __slots__ = ()  # a million dicts without attributes take little memory

    def __setitem__(self, key: Any, value: Any) -> None:
        # No tuples: the hash of a tuple that nests itself twice, in fifty levels, would take for ever. No long numbers:
        # a million long numbers can have one hash.
        if not isinstance(key, str | int) or (isinstance(key, int) and not -(2**31) <= key < 2**31):
            raise ValueError(f"a dict has a key that is a {type(key).__name__} or a very long number")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        """Accept the module versions that state_dict() sets on a dict."""
        if not isinstance(state, dict) or state.keys() != {"_metadata"}:
            raise ValueError("the pickle sets attributes of an object; plain weights have none")


class _Global(NamedTuple):
    """A global of the pickle."""

    name: str

    def __call__(self, *arguments: Any) -> _Dict | StoredTensor:
        """Return the result of a call: a dict, or the description of a tensor."""
        match self.name, arguments:
            case "collections.OrderedDict", ():
                return _Dict()
            case "torch._utils._rebuild_tensor", (Storage() as storage, offset, shape, stride):
                return _tensor(storage, offset, shape, stride)
            # Further arguments: requires_grad, and hooks and (since torch 1.13) flags, which weights do not have.
            case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, shape, stride, bool(), hooks, *rest):
                if hooks != {} or rest not in ([], [None], [{}]):
                    raise ValueError("the pickle has a tensor with hooks or flags")
                return _tensor(storage, offset, shape, stride)
            case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, bool(), hooks) if hooks == {}:
                return tensor
        raise ValueError(f"the pickle calls {self.name} in a way that torch.save never does")


def _tensor(storage: Storage, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """Return a tensor whose elements lie in the storage without gaps and without overlap."""
    if not _whole_numbers((offset,)) or not _whole_numbers(shape) or not _whole_numbers(stride):
        raise ValueError("a tensor has an offset, a shape or strides that are not whole numbers")
    if len(shape) > _MOST_DIMENSIONS or len(shape) != len(stride):
        raise ValueError(f"a tensor has {len(shape):,} dimensions and {len(stride):,} strides")
    if not _is_dense(shape, stride, storage.numel - offset):
        raise ValueError(
            f"a tensor of shape {printable(shape)} and stride {printable(stride)}, starting at {offset}, overlaps "
            f"itself, has gaps or does not fit the storage of {storage.numel:,} elements"
        )
    return StoredTensor(storage, offset, shape, stride)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...], room: int) -> bool:
    """Return whether the elements fill the first of `room` places without overlap, in any order of the dimensions."""
    if 0 in shape:  # The tensor is empty. Its dimensions still have limits.
        return room >= 0 and max(shape) <= _LONGEST_DIMENSION and max(stride) <= _LONGEST_DIMENSION
    count = 1
    for step, length in sorted(zip(stride, shape, strict=True)):
        if length == 1:
            continue
        if step != count:
            return False
        count *= length
        if count > room:  # Inside the loop: the product of a thousand lengths is a very long number.
            return False
    return count <= room
