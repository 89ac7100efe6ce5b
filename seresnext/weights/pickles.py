"""What a pickle of torch says, found out without executing it.

A pickle is a program for a stack machine, and most of its language exists to import and call things. torch.save needs
little of it to write a dict of tensors, so this module is that machine with that little: it decodes with `pickletools`,
which runs nothing, knows a dozen global names, and turns a tensor into a description of where its numbers lie. Anything
else is refused. Because the result is known before a byte is allocated for a tensor, sizes can be checked first.

Compare `torch/_weights_only_unpickler.py`, which lets more pass: `bytearray` and `torch.Tensor`, for example, whose
arguments make a file of a few hundred bytes take any amount of memory.
"""

from __future__ import annotations

import pickletools
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import torch

from seresnext.weights.names import printable

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
# Without `_v2` is torch before 0.4, which wrote the published files of SE-ResNeXt-50 and 101.
_REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
_GLOBALS = {*_DTYPES, _ORDERED_DICT, *_REBUILD_TENSOR, _REBUILD_PARAMETER}


class PickleRefused(ValueError):
    """The pickle is damaged, or has something that plain weights do not have."""


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file, by the key it is stored under."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor: all or a part of a storage. `offset` and `stride` count elements."""

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
    """A pickle's value, with `StoredTensor` for tensors and `dict` for every dict, and all storages it names."""

    value: Any
    storages: dict[str, Storage]


@dataclass(frozen=True)
class _Global:
    name: str


def describe(stream: BinaryIO) -> Description:
    """Read one pickle from the stream, which is then just behind it. Raises ValueError, mostly PickleRefused."""
    machine = _Machine()
    with warnings.catch_warnings(action="ignore"):  # The decoder warns of backslashes in what is no text.
        for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            if count == _MOST_INSTRUCTIONS:
                raise PickleRefused(f"its pickle has more than {_MOST_INSTRUCTIONS:,} instructions")
            try:
                machine.execute(opcode.name, argument)
            except (IndexError, KeyError) as error:  # The stack, a memo or a tuple lacks what the instruction needs.
                raise PickleRefused(f"its pickle is damaged at byte {position}, {opcode.name}") from error
    if not machine.has_one_value:
        raise PickleRefused("its pickle is damaged: it does not leave one value")
    return Description(machine.pop(), machine.storages)


class _Machine:
    """The stack machine. MARK starts a new stack on top, as in CPython, so nothing can reach below it."""

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
                    raise PickleRefused(f"its pickle has protocol {argument}; torch.save writes 2")
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
                raise PickleRefused(f"its pickle has the instruction {opcode}, which plain weights do not need")

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise PickleRefused("its pickle is damaged: it appends to what is no list")
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleRefused("its pickle is damaged: it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No tuples: hashing one that holds itself twice, fifty times over, would never end. No long numbers: a
            # million of them can have one hash.
            if not isinstance(key, str | int) or (isinstance(key, int) and not -(2**31) <= key < 2**31):
                raise PickleRefused(f"it has a dict with a key that is a {type(key).__name__} or a very long number")
            target[key] = value

    def _storage(self, identifier: Any) -> Storage:
        """The storage of a persistent id `("storage", type, key, device, numel)`.

        Files that are not zip have a sixth value, None except for views of storages, which torch gave up before 1.0.
        """
        match identifier:
            case ("storage", _Global(name=kind), str(key), str(), int(numel), *rest) if kind in _DTYPES:
                pass
            case _:
                raise PickleRefused("it refers to something outside the pickle that is no storage")
        if rest not in ([], [None]) or numel < 0:
            raise PickleRefused(f"its storage {printable(key)} is a view of another or has a negative size")
        storage = Storage(key, _DTYPES[kind], numel)
        if self.storages.setdefault(key, storage) != storage:
            raise PickleRefused(f"its storage {printable(key)} is declared twice, differently")
        return storage


def _allowed_global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise PickleRefused(
            f"it would import {printable(name)}, and weights need no such thing; "
            "if the file is a training checkpoint you trust, save its state_dict alone"
        )
    return _Global(name)


def _call(function: Any, arguments: Any) -> Any:
    """What calling a global gives: a dict, or the description of a tensor."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise PickleRefused("its pickle calls what is no function")
    match function.name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor", (Storage() as storage, offset, shape, stride):
            return _tensor(storage, offset, shape, stride)
        # ... then requires_grad, hooks (a dict) and, since torch 1.13, flags (None or a dict). Weights have neither.
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, shape, stride, bool(), *rest):
            if rest[0] != {} or rest[1:] not in ([], [None], [{}]):
                raise PickleRefused("it has a tensor with hooks or flags")
            return _tensor(storage, offset, shape, stride)
        case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, bool(), hooks) if hooks == {}:
            return tensor
        case _:
            raise PickleRefused(f"its pickle calls {function.name} in a way torch.save never does")


def _tensor(storage: Storage, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """A tensor whose elements lie in its storage, side by side, each once."""
    if not _whole_numbers((offset,)) or not _whole_numbers(shape) or not _whole_numbers(stride):
        raise PickleRefused("it has a tensor whose offset, shape or stride are not whole numbers")
    if len(shape) > _MOST_DIMENSIONS or len(shape) != len(stride):
        raise PickleRefused(f"it has a tensor of {len(shape):,} dimensions and {len(stride):,} strides")
    if not _is_dense(shape, stride, storage.numel - offset):
        raise PickleRefused(
            f"it has a tensor of shape {printable(shape)} and stride {printable(stride)}, starting at {offset}, "
            f"which overlaps itself, has gaps or does not fit its storage of {storage.numel:,} elements"
        )
    return StoredTensor(storage, offset, shape, stride)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...], room: int) -> bool:
    """Whether the elements fill the first of `room` places without overlap, in whatever order of the dimensions."""
    if 0 in shape:  # Nothing, of which there is still not more along any dimension than any file can hold.
        return room >= 0 and max(shape) <= _LONGEST_DIMENSION and max(stride) <= _LONGEST_DIMENSION
    count = 1
    for step, length in sorted(zip(stride, shape, strict=True)):
        if length == 1:
            continue
        if step != count:
            return False
        count *= length
        if count > room:  # Here and not after the loop: the product of a thousand lengths is a very long number.
            return False
    return count <= room


def _check_attributes(state: Any, target: Any) -> None:
    """state_dict() hangs the versions of its modules on the dict; nothing else has attributes."""
    if not isinstance(target, dict) or not isinstance(state, dict) or state.keys() != {"_metadata"}:
        raise PickleRefused("it sets attributes of an object, and plain weights have none")
