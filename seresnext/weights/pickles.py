"""The value of a torch pickle, found without executing the pickle.

A pickle is a program for a stack machine, and most instructions exist to import and call things. torch.save needs few
instructions to write a dict of tensors. This module reads a pickle with Python's own unpickler, limited to these
instructions and to a dozen global names. Nothing is imported: a name stands for a type of numbers, or for a function
of this module. The numbers of all tensors together never take more memory than the file.

`torch/_weights_only_unpickler.py` allows more, for example `bytearray` and copies of dicts: a file of a few hundred
bytes can then take any amount of memory.
"""

import pickle
from argparse import Namespace
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor
from torch.serialization import StorageType

from seresnext.errors import printable
from seresnext.weights.names import MOST_DIMENSIONS

# fmt: off
_INSTRUCTIONS = (
    "PROTO", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "BINPERSID",
    "REDUCE", "BUILD", "NEWOBJ",
)
# fmt: on


def load_pickle(stream: BinaryIO, room: int = 0) -> tuple[Any, dict[str, Tensor]]:
    """Read one pickle: the value, and the storages of its tensors by key, still without numbers.

    All storages together have at most `room` bytes. A tensor is a view of a storage. Raise ValueError.
    """
    unpickler = _Unpickler(stream, room)
    try:
        return unpickler.load(), unpickler.storages
    except ValueError:
        raise
    except Exception as error:  # The unpickler raises errors of many classes, KeyError for another instruction.
        reason = printable(repr(error))
        raise ValueError(f"the pickle is damaged or more than weights ({reason})") from error


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """Return a view of a storage. torch checks the bounds. Further arguments are flags and hooks of training."""
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape):,} dimensions")
    return storage.as_strided(shape, stride, offset)


_NUMBERS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {
    **{f"torch.{name}Storage": StorageType(f"{name}Storage").dtype for name in _NUMBERS},
    "collections.OrderedDict": lambda: {},  # noqa: PIE807 (`dict` would make copies, which take much memory)
    "torch._utils._rebuild_tensor": _tensor,  # by torch before 0.4: the published files of SE-ResNeXt-50 and 101
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "argparse.Namespace": Namespace,  # the arguments of the training script, in checkpoints of timm and torchvision
}


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, in the version that is written in Python, with few instructions.

    Each instruction of a byte or two makes at most one small object: no copies, and no objects for the numbers in a
    tensor.
    """

    stack: list[Any]
    pop_mark: Any

    def __init__(self, stream: BinaryIO, room: int) -> None:
        super().__init__(stream)
        self.storages: dict[str, Tensor] = {}
        self._room = room

    def load_setitem(self) -> None:
        value, key, target = self.stack.pop(), self.stack.pop(), self.stack[-1]
        # No tuples: the hash of a tuple that nests itself twice, in fifty levels, would take for ever. No long numbers:
        # a million long numbers can have one hash. A tensor would copy a list that nests itself twice.
        if not isinstance(target, dict) or not isinstance(key, str | int):
            raise ValueError(f"the pickle sets an item {type(key).__name__} of a {type(target).__name__}")
        if isinstance(key, int) and not -(2**31) <= key < 2**31:
            raise ValueError("a dict has a very long number as a key")
        target[key] = value

    def load_setitems(self) -> None:
        items = iter(self.pop_mark())
        for pair in zip(items, items, strict=True):
            self.stack += pair
            self.load_setitem()

    def load_reduce(self) -> None:
        """Call a function of this module. NEWOBJ makes a Namespace."""
        if not isinstance(arguments := self.stack.pop(), tuple):
            raise ValueError(f"the pickle calls a function with a {type(arguments).__name__}")
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self) -> None:
        """Set the attributes of a Namespace. state_dict() sets `_metadata` on a dict, which nobody needs."""
        state, instance = self.stack.pop(), self.stack[-1]
        is_namespace = type(instance) is Namespace
        if not isinstance(state, dict) or not (is_namespace or state.keys() == {"_metadata"}):
            raise ValueError("the pickle sets attributes of an object; plain weights have none")
        if is_namespace:
            instance.__dict__ = state

    dispatch: ClassVar[dict[int, Any]] = {
        **{code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _INSTRUCTIONS)},
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.BUILD[0]: load_build,
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise ValueError(f"the pickle would import {printable(f'{module}.{name}')}, which weights do not need")
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Tensor:
        """Return the storage of a persistent id `("storage", type, key, device, numel)`.

        Files that are not zip have a sixth value, None except for views of storages, which torch gave up before 1.0.
        """
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(numel), *view) if view in ([], [None]):
                pass
            case _:
                raise ValueError("the pickle refers to an outside object that is no storage")
        if key not in self.storages:
            self._room -= abs(numel) * dtype.itemsize
            if self._room < 0:
                raise ValueError("the storages take more bytes than the file has: the file was cut off or changed")
            self.storages[key] = torch.empty(numel, dtype=dtype)
        storage = self.storages[key]
        if (len(storage), storage.dtype) != (numel, dtype):
            raise ValueError(f"the storage {printable(key)} is declared twice, with different sizes or types")
        return storage
