"""Which images each loader worker has in hand, told in shared memory: what is left to ask when it died or hangs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from seresnext.data.order import BatchKey

MOST_IMAGES = 16
"""How many images a worker can have in hand at once."""

_STEP, _REPLICA, _COUNT, _IMAGES = 0, 1, 2, 3
_own: np.ndarray | None = None


class WorkerStatus:
    """A row for each worker, made before the workers are. `enter` makes one this process's own."""

    def __init__(self, workers: int) -> None:
        self._rows = torch.zeros((workers, _IMAGES + MOST_IMAGES), dtype=torch.int64).share_memory_()
        self._rows[:, _STEP] = -1

    def enter(self, worker: int) -> None:
        """To be called in the worker, before anything is noted."""
        global _own
        _own = self._rows[worker].numpy()

    def images_of(self, worker: int) -> list[int]:
        """What a worker had in hand last."""
        row = self._rows[worker].tolist()
        return row[_IMAGES : _IMAGES + row[_COUNT]]

    def images_for(self, step: int, replica: int) -> list[int]:
        """What the worker that makes the batch of this step and replica has in hand."""
        for worker, (at, of) in enumerate(self._rows[:, [_STEP, _REPLICA]].tolist()):
            if (at, of) == (step, replica):
                return self.images_of(worker)
        return []


def note_batch(key: BatchKey) -> None:
    """Note which batch this worker makes. In a process that is no worker this does nothing, as `set_current_images`."""
    if _own is not None:
        _own[:_IMAGES] = (key.step, key.replica, 0)


def set_current_images(indices: Sequence[int]) -> None:
    """Note the images that are being read or decoded, at most `MOST_IMAGES`."""
    if _own is not None:
        _own[_IMAGES : _IMAGES + len(indices)] = indices
        _own[_COUNT] = len(indices)
