"""The order of training images: a pure function of (seed, step)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seresnext.errors import DataError
from seresnext.randomness import permutation_at


class BatchKey(NamedTuple):
    """One micro-batch: optimizer step, logical replica, epoch, and images (int64 N).

    `copies` (int64 N) numbers the copies of an image within an epoch; None: each image has one copy, number 0.
    `image_size` is the side of the images in pixels; None: the size of the batch source.
    """

    step: int
    replica: int
    epoch: int
    indices: np.ndarray
    copies: np.ndarray | None = None
    image_size: int | None = None

    def addresses(self) -> list[tuple[int, int, int]]:
        """Return (epoch, image, copy) of each image, the address of the random draws."""
        copies = np.zeros_like(self.indices) if self.copies is None else self.copies
        return [(self.epoch, *pair) for pair in zip(self.indices.tolist(), copies.tolist(), strict=True)]


@dataclass(eq=False)
class Order:
    """The order of training images.

    An epoch is `floor(num_images / global_size)` steps over a keyed permutation. The remainder is unseen and differs in
    each epoch. Global batch `k` of an epoch is the k-th slice of the permutation, and each logical replica takes a
    slice of the global batch. Raises DataError when there are too few images for one step.

    With `repeats` (repeated augmentation, Hoffer et al. 2020, "Augment your batch"), a global batch holds `repeats`
    copies of each image, so an epoch shows `repeats` times fewer images. A global batch is laid out copy after copy, so
    the copies are spread over the replicas as evenly as possible.

    With `shards_per_block`, so many random shards form a block, other shards in each epoch. Images are shuffled only
    within a block, and the blocks come in order. `shard_ids` (int N) has the shard number of each image.

    `labels` (int N) balances the classes: `balanced` then replaces the permutation.
    """

    num_images: int
    global_size: int
    micro_size: int
    seed: int
    repeats: int = 1
    labels: np.ndarray | None = None
    shard_ids: np.ndarray | None = None
    shards_per_block: int | None = None

    def __post_init__(self) -> None:
        assert self.global_size % self.micro_size == self.global_size % self.repeats == 0
        self.steps_per_epoch = self.num_images // self.global_size
        self.replicas = self.global_size // self.micro_size
        if self.steps_per_epoch == 0:
            sizes = f"{self.num_images} images make no step (batch.global_size: {self.global_size})"
            raise DataError(f"{sizes}; lower batch.global_size")
        self._epoch = -1
        self._permutation = self._rounds = np.empty(0, np.int64)

    def micro_batch(self, step: int, replica: int) -> BatchKey:
        """Return the micro-batch of a logical replica in a step (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        distinct = self.global_size // self.repeats
        if epoch != self._epoch:
            self._rounds = np.zeros(self.num_images, np.int64)
            if self.labels is None:
                self._permutation = permutation_at(self.seed, "order", epoch, count=self.num_images)
            else:
                count = self.steps_per_epoch * distinct
                self._permutation, self._rounds = balanced(self.labels, self.seed, epoch, count)
            if self.shard_ids is not None and self.shards_per_block:
                shards = permutation_at(self.seed, "shards", epoch, count=int(self.shard_ids.max()) + 1)
                blocks = np.argsort(shards)[self.shard_ids[self._permutation]] // self.shards_per_block
                self._permutation = self._permutation[np.argsort(blocks, kind="stable")]
            self._epoch = epoch
        copies, positions = np.divmod(np.arange(self.micro_size) + replica * self.micro_size, distinct)
        places = within * distinct + positions
        copies += self._rounds[places] * self.repeats
        return BatchKey(step, replica, epoch, self._permutation[places], copies)


def balanced(labels: np.ndarray, seed: int, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of an epoch of `count` places with equally many images of each class, and their rounds.

    One row of places goes through all epochs. The places are in blocks of K, the number of classes with images. Each
    block has every class once, in a keyed order. The places of a class take the images of the class in rounds. A round
    is a keyed permutation, so an image comes again only after all images of the class. A round that continues from the
    epoch before is number 0 of the epoch. The pair of image and round is unique within an epoch.
    """
    images_of = [images for images in _by_value(labels) if len(images)]
    start = epoch * count
    classes = _shuffled(len(images_of), seed, "classes", start=start, stop=start + count)
    visits = np.arange(start, start + count) // len(images_of)  # the number of earlier places with the same class
    found, rounds = np.empty(count, np.int64), np.empty(count, np.int64)
    for number, (images, places) in enumerate(zip(images_of, _by_value(classes), strict=False)):
        if not len(places):
            continue
        own = visits[places]
        order = _shuffled(len(images), seed, "class", number, start=int(own[0]), stop=int(own[-1]) + 1)
        found[places] = images[order]
        rounds[places] = own // len(images) - own[0] // len(images)
    return found, rounds


def _by_value(values: np.ndarray) -> list[np.ndarray]:
    """Return the places of each value 0, 1, ... in growing order (int N each)."""
    return np.split(np.argsort(values, kind="stable"), np.cumsum(np.bincount(values))[:-1])


def _shuffled(count: int, seed: int, *address: int | str, start: int, stop: int) -> np.ndarray:
    """Return places `start` to `stop` of an endless row of keyed permutations of 0 .. count - 1."""
    rows = -(-256 // count)  # permutations of one key: a key costs more than a number
    size = rows * count
    blocks = range(start // size, -(-stop // size))
    found = []
    for block in blocks:
        drawn = permutation_at(seed, *address, block, count=size)
        found.append(drawn[np.argsort(drawn // count, kind="stable")] % count)  # row by row
    return np.concatenate(found)[start - blocks.start * size : stop - blocks.start * size]
