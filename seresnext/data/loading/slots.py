"""Memory that loader workers and the trainer share, for the images of the batches that are on their way.

A batch that is shared on its own costs the kernel as many cleared pages as it is large, and has to fit into /dev/shm.
Slots are made once, before the workers are forked, and used in turns.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

_own: Tensor | None = None


class Slots:
    """`count` places of `size` bytes each. Pages that nobody wrote to cost nothing."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = torch.frombuffer(mmap.mmap(-1, max(count * self._size, 1)), dtype=torch.uint8)

    def memory(self, number: int) -> Tensor:
        """The bytes of a place, uint8; those of number `count` are the first one's again."""
        start = number % self.count * self._size
        return self._memory[start : start + self._size]

    def enter(self, number: int) -> None:
        """To be called in a worker: what it allocates next lies in this place."""
        global _own
        _own = self.memory(number)


def allocate(*shape: int) -> Tensor | None:
    """The beginning of this worker's place as uint8 of a shape; None where it has none, or a smaller one."""
    if _own is None or math.prod(shape) > len(_own):
        return None
    return _own[: math.prod(shape)].view(shape)


def is_own(tensor: Tensor) -> bool:
    """Whether a tensor begins where this worker's place does."""
    return _own is not None and tensor.data_ptr() == _own.data_ptr()
