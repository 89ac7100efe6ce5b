"""Which images a step sees: a pure function of (seed, step)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import NamedTuple

import numpy as np

from seresnext.errors import DataError
from seresnext.randomness import permutation_at

# From so many images on, an epoch's permutation is computed while the epoch before it runs: 0.1 s for 1.28 million.
_MANY = 100_000


class BatchKey(NamedTuple):
    """One micro-batch: its optimizer step and logical replica, its epoch, and its images (int64 N).

    `copies` (int64 N) tells the copies of an image within its epoch apart; None: each is the only one, number 0.
    `image_size` is the side in pixels at which the batch is made; None: the size that its source has.
    """

    step: int
    replica: int
    epoch: int
    indices: np.ndarray
    copies: np.ndarray | None = None
    image_size: int | None = None

    def addresses(self) -> list[tuple[int, int, int]]:
        """(epoch, image, copy) of each image: where its random draws are."""
        copies = np.zeros_like(self.indices) if self.copies is None else self.copies
        return [(self.epoch, *pair) for pair in zip(self.indices.tolist(), copies.tolist(), strict=True)]


class Order:
    """The order of training images.

    An epoch is `floor(num_images / global_size)` steps over a keyed permutation; the remainder, another one each epoch,
    is not seen. Global batch `k` of an epoch is the k-th slice of the permutation, and a logical replica takes its
    slice of that. Raises DataError when there are too few images for one step.

    With `repeats` (repeated augmentation, Hoffer et al. 2020, "Augment your batch") a global batch holds each of its
    images that often, as copies 0, 1, ... with augmentations of their own. An epoch keeps its number of steps and so
    shows `repeats` times fewer images, none in two of its steps. A global batch is laid out copy after copy, all
    images in each: while there are no more copies than logical replicas, no replica sees an image twice, and else the
    copies of an image are spread over the replicas as evenly as they go.

    `blocks(seed, epoch)` (int N, for each image) keeps images of a low number before those of a high one: an epoch then
    is mixed within each block only, for data of which not all is at hand at once.
    """

    def __init__(
        self,
        num_images: int,
        global_size: int,
        micro_size: int,
        seed: int,
        repeats: int = 1,
        blocks: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        assert global_size % micro_size == global_size % repeats == 0
        self.steps_per_epoch = num_images // global_size
        self.replicas = global_size // micro_size
        if self.steps_per_epoch == 0:
            unit = math.lcm(micro_size, repeats)
            fitting = num_images // unit * unit
            advice = f"set batch.global_size={fitting}" if fitting else "lower batch.global_size and batch.micro_size"
            raise DataError(
                f"{num_images} training images are fewer than one step takes (batch.global_size: {global_size}); "
                f"{advice}"
            )
        self._num_images = num_images
        self._distinct = global_size // repeats
        self._micro_size = micro_size
        self._seed = seed
        self._blocks = blocks
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)
        self._next = _Coming(0, partial(self._permute, 0))

    def micro_batch(self, step: int, replica: int) -> BatchKey:
        """The micro-batch of a logical replica in step number `step` (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = self._next.value() if self._next.epoch == epoch else self._permute(epoch)
            self._epoch = epoch
            self._next = _Coming(epoch + 1, partial(self._permute, epoch + 1))
            if self._num_images >= _MANY:
                self._next.start()
        copies, positions = np.divmod(np.arange(self._micro_size) + replica * self._micro_size, self._distinct)
        indices = self._permutation[within * self._distinct + positions]
        return BatchKey(step, replica, epoch, indices, copies)

    def _permute(self, epoch: int) -> np.ndarray:
        permutation = permutation_at(self._seed, "order", epoch, count=self._num_images)
        if self._blocks is None:
            return permutation
        return permutation[np.argsort(self._blocks(self._seed, epoch)[permutation], kind="stable")]


class _Coming:
    """The permutation of an epoch: computed when it is asked for, or before, by a thread, once that was started."""

    def __init__(self, epoch: int, permute: Callable[[], np.ndarray]) -> None:
        self.epoch = epoch
        self._permute = permute
        self._value: np.ndarray | None = None
        self._thread: Thread | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        self._thread = Thread(target=self._compute, name="order", daemon=True)
        self._thread.start()

    def value(self) -> np.ndarray:
        # A fork copies what the thread has done so far, and not the thread.
        if self._thread and self._pid == os.getpid():
            self._thread.join()
        if self._value is None:
            self._compute()
        assert self._value is not None
        return self._value

    def _compute(self) -> None:
        self._value = self._permute()


def block_shuffle(shard_ids: np.ndarray, together: int) -> Callable[[int, int], np.ndarray]:
    """Blocks of `together` shards each, other ones in every epoch. `shard_ids` (N) says which shard an image is in.

    With as many as there are the order is the one without blocks.
    """
    count = int(shard_ids.max()) + 1

    def blocks(seed: int, epoch: int) -> np.ndarray:
        block_of_shard = np.empty(count, np.int64)
        block_of_shard[permutation_at(seed, "shards", epoch, count=count)] = np.arange(count) // together
        return block_of_shard[shard_ids]

    return blocks
