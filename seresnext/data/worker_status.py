"""The images that each loader worker reads or decodes, in shared memory: a worker that is lost can name no images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from seresnext.data.order import BatchKey

MOST_IMAGES = 16
"""The largest number of current images of a worker."""

_STEP, _REPLICA, _COUNT, _IMAGES = 0, 1, 2, 3
_own: np.ndarray | None = None


class WorkerStatus:
    """A table with one row for each worker. The table is made before the workers are forked."""

    def __init__(self, workers: int) -> None:
        self._rows = torch.zeros((workers, _IMAGES + MOST_IMAGES), dtype=torch.int64).share_memory_()
        self._rows[:, _STEP] = -1

    def enter(self, worker: int) -> None:
        """Use the row of a worker in this process. Each worker calls this first."""
        global _own
        _own = self._rows[worker].numpy()

    def images_of(self, worker: int) -> list[int]:
        row = self._rows[worker].tolist()
        return row[_IMAGES : _IMAGES + row[_COUNT]]

    def images_for(self, step: int, replica: int) -> list[int]:
        """Return the current images of the worker that makes the batch of a step and replica."""
        batches = self._rows[:, :_COUNT].tolist()
        return self.images_of(batches.index([step, replica])) if [step, replica] in batches else []


def set_current_batch(key: BatchKey) -> None:
    """Record the batch that this worker makes. Do nothing in a process that is no worker."""
    if _own is not None:
        _own[:_IMAGES] = (key.step, key.replica, 0)


def set_current_images(indices: Sequence[int]) -> None:
    """Record the images, at most `MOST_IMAGES`, that this worker reads. Do nothing in a process that is no worker."""
    if _own is not None:
        _own[_IMAGES : _IMAGES + len(indices)] = indices
        _own[_COUNT] = len(indices)
