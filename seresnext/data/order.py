"""Which images a step sees: a pure function of (seed, step)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from seresnext.errors import DataError
from seresnext.randomness import permutation_at


class BatchKey(NamedTuple):
    """One micro-batch: its optimizer step and logical replica, its epoch, and its images (int64 N)."""

    step: int
    replica: int
    epoch: int
    indices: np.ndarray


class Order:
    """The order of training images.

    An epoch is `floor(num_images / global_size)` steps over a keyed permutation; the remainder, another one each epoch,
    is not seen. Global batch `k` of an epoch is the k-th slice of the permutation, and a logical replica takes its
    slice of that. Raises DataError when there are too few images for one step.
    """

    def __init__(self, num_images: int, global_size: int, micro_size: int, seed: int) -> None:
        assert global_size % micro_size == 0
        self.steps_per_epoch = num_images // global_size
        self.replicas = global_size // micro_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{num_images} training images are fewer than one step takes (batch.global_size: {global_size}); "
                f"set batch.global_size to {num_images} or less"
            )
        self._num_images = num_images
        self._global_size = global_size
        self._micro_size = micro_size
        self._seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def micro_batch(self, step: int, replica: int) -> BatchKey:
        """The micro-batch of a logical replica in step number `step` (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = permutation_at(self._seed, "order", epoch, count=self._num_images)
            self._epoch = epoch
        start = within * self._global_size + replica * self._micro_size
        return BatchKey(step, replica, epoch, self._permutation[start : start + self._micro_size])
