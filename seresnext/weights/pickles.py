"""The content of a torch pickle, found without executing the pickle.

A pickle is a program for a stack machine, and most instructions exist to import and call things. torch.save needs few
instructions to write a dict of tensors. This module is a machine with these instructions only. `pickletools` decodes
and runs nothing. The machine knows a dozen global names and turns a tensor into a description of the place of the
numbers. Everything else is refused. Sizes are checked before a byte is allocated for a tensor.

`torch/_weights_only_unpickler.py` allows more, for example `bytearray` and `torch.Tensor`: a file of a few hundred
bytes can then take any amount of memory.
"""

from __future__ import annotations

import pickletools
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import torch

from seresnext.printable import printable

# The published SE-ResNeXt-101 takes 23,000 instructions.
_MOST_INSTRUCTIONS = 1_000_000
_MOST_DIMENSIONS = 16
_LONGEST_DIMENSION = 2**31 - 1

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
_ORDERED_DICT = "collections.OrderedDict"
# torch before 0.4 writes the name without `_v2`, as in the published files of SE-ResNeXt-50 and 101.
_REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
_GLOBALS = {*_DTYPES, _ORDERED_DICT, *_REBUILD_TENSOR, _REBUILD_PARAMETER}


class PickleRefused(ValueError):
    """A pickle that is damaged, or has something that plain weights do not have."""


@dataclass(frozen=True)
class Storage:
    """A sequence of numbers in the file, with the key of the sequence."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor: a whole storage or a part. `offset` and `stride` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        count = self.storage.dtype.itemsize
        for length in self.shape:
            count *= length
        return count


class Description(NamedTuple):
    """The value of a pickle, with `StoredTensor` for tensors and `dict` for every dict, and all storages."""

    value: Any
    storages: dict[str, Storage]


@dataclass(frozen=True)
class _Global:
    name: str


def describe(stream: BinaryIO) -> Description:
    """Read one pickle, and leave the stream at the end of the pickle. Raise ValueError, mostly PickleRefused."""
    machine = _Machine()
    with warnings.catch_warnings(action="ignore"):  # The decoder warns of backslashes.
        for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            if count == _MOST_INSTRUCTIONS:
                raise PickleRefused(f"the pickle has more than {_MOST_INSTRUCTIONS:,} instructions")
            try:
                machine.execute(opcode.name, argument)
            except (IndexError, KeyError) as error:  # The stack, a memo or a tuple lacks an operand.
                raise PickleRefused(f"the pickle is damaged at byte {position}, {opcode.name}") from error
    if not machine.has_one_value:
        raise PickleRefused("the pickle is damaged: the result is not one value")
    return Description(machine.pop(), machine.storages)


class _Machine:
    """The stack machine. MARK starts a new stack, as in CPython: no instruction reaches below the mark."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    @property
    def has_one_value(self) -> bool:
        return not self._below and len(self._stack) == 1

    def pop(self) -> Any:
        return self._stack.pop()

    def execute(self, opcode: str, argument: Any) -> None:
        push, pop = self._stack.append, self._stack.pop
        match opcode:
            case "PROTO":
                if argument != 2:
                    raise PickleRefused(f"the pickle has protocol {argument}; torch.save writes 2")
            case "STOP":
                pass
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(opcode == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                push(argument)
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(opcode[-1]))]
                push(tuple(reversed(items)))
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "TUPLE":
                items = self._pop_to_mark()
                self._stack.append(tuple(items))
            case "APPEND":
                self._extend([pop()])
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                value, key = pop(), pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(_allowed_global(argument.replace(" ", ".")))
            case "BINPERSID":
                push(self._storage(pop()))
            case "REDUCE":
                arguments, function = pop(), pop()
                push(_call(function, arguments))
            case "BUILD":
                _check_attributes(pop(), self._stack[-1])
            case _:
                raise PickleRefused(f"the pickle has the instruction {opcode}, which plain weights do not need")

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise PickleRefused("the pickle is damaged: an append to a value that is no list")
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleRefused("the pickle is damaged: items are set in a value that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No tuples: the hash of a tuple that nests itself twice, in fifty levels, would take for ever. No long
            # numbers: a million long numbers can have one hash.
            if not isinstance(key, str | int) or (isinstance(key, int) and not -(2**31) <= key < 2**31):
                raise PickleRefused(f"a dict has a key that is a {type(key).__name__} or a very long number")
            target[key] = value

    def _storage(self, identifier: Any) -> Storage:
        """Return the storage of a persistent id `("storage", type, key, device, numel)`.

        Files that are not zip have a sixth value. The value is None except for views of storages, which torch gave up
        before 1.0.
        """
        match identifier:
            case ("storage", _Global(name=kind), str(key), str(), int(numel), *rest) if kind in _DTYPES:
                pass
            case _:
                raise PickleRefused("the pickle refers to an outside object that is no storage")
        if rest not in ([], [None]) or numel < 0:
            raise PickleRefused(f"the storage {printable(key)} is a view of another or has a negative size")
        storage = Storage(key, _DTYPES[kind], numel)
        if self.storages.setdefault(key, storage) != storage:
            raise PickleRefused(f"the storage {printable(key)} is declared twice, with different sizes or types")
        return storage


def _allowed_global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise PickleRefused(
            f"the pickle would import {printable(name)}, which weights do not need; "
            "if the file is a training checkpoint that you trust, save the state_dict alone"
        )
    return _Global(name)


def _call(function: Any, arguments: Any) -> Any:
    """Return the result of a call of a global: a dict, or the description of a tensor."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise PickleRefused("the pickle calls a value that is no function")
    match function.name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor", (Storage() as storage, offset, shape, stride):
            return _tensor(storage, offset, shape, stride)
        # Further arguments: requires_grad, hooks (a dict) and, since torch 1.13, flags (None or a dict). Weights have
        # no hooks and no flags.
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, shape, stride, bool(), *rest):
            if rest[0] != {} or rest[1:] not in ([], [None], [{}]):
                raise PickleRefused("the pickle has a tensor with hooks or flags")
            return _tensor(storage, offset, shape, stride)
        case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, bool(), hooks) if hooks == {}:
            return tensor
        case _:
            raise PickleRefused(f"the pickle calls {function.name} in a way that torch.save never does")


def _tensor(storage: Storage, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """Return a tensor whose elements lie in the storage without gaps and without overlap."""
    if not _whole_numbers((offset,)) or not _whole_numbers(shape) or not _whole_numbers(stride):
        raise PickleRefused("a tensor has an offset, a shape or strides that are not whole numbers")
    if len(shape) > _MOST_DIMENSIONS or len(shape) != len(stride):
        raise PickleRefused(f"a tensor has {len(shape):,} dimensions and {len(stride):,} strides")
    if not _is_dense(shape, stride, storage.numel - offset):
        raise PickleRefused(
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


def _check_attributes(state: Any, target: Any) -> None:
    """Raise PickleRefused unless these are the module versions that state_dict() sets on a dict."""
    if not isinstance(target, dict) or not isinstance(state, dict) or state.keys() != {"_metadata"}:
        raise PickleRefused("the pickle sets attributes of an object; plain weights have none")
