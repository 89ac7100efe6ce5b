"""Replacement of bad images by images of the same class, and a count of bad images with a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.randomness import rng_at

# After so many bad images of a class in a row, the whole class counts as bad.
_MOST_TRIED = 20

ADVICE = "or replace bad images by others of the class with data.on_error=substitute"
"""The fix for a bad training image, appended to the message about the image."""


class ReplacedImage(NamedTuple):
    """A bad image: index, message with name and cause, and name of the replacement."""

    image: int
    reason: str
    replacement: str


class HasReplaced(Protocol):
    """A batch with replaced images."""

    @property
    def replaced(self) -> tuple[ReplacedImage, ...]: ...


BatchT = TypeVar("BatchT", bound=HasReplaced)


def candidates(labels: np.ndarray, seed: int, address: tuple[int, int, int]) -> Iterator[int]:
    """Yield the images that may replace the image at an address (epoch, image, copy), in the order of the attempts.

    The candidates are the images of the class, from a position drawn for the address. So the replacement is the same
    for each worker, rank and resume.
    """
    index = address[1]
    members = np.flatnonzero(labels == labels[index])
    start = rng_at(seed, "substitute", *address).randint(len(members))
    for offset in range(min(len(members), _MOST_TRIED + 1)):
        candidate = int(members[(start + offset) % len(members)])
        if candidate != index:
            yield candidate


class BadImageCounter:
    """The number of different bad images of all ranks since the start of the process.

    An image may come to another rank in the next epoch, so no rank can count alone. `note` collects the bad images of
    this rank, and `share`, called by all ranks, exchanges the new ones, warns once about each, and ends the run after
    more than `limit`.
    """

    def __init__(self, limit: int, world: World, warn: Callable[[str], None]) -> None:
        self._limit = limit
        self._world = world
        self._warn = warn
        self._seen: set[int] = set()
        self._pending: dict[int, ReplacedImage] = {}

    @property
    def count(self) -> int:
        """The number of bad images that all ranks know."""
        return len(self._seen)

    @property
    def pending(self) -> int:
        """The number of new bad images that only this rank knows."""
        return len(self._pending)

    def watch(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """Yield the batches, and note the replaced images of each batch."""
        for batch in batches:
            self.note(batch.replaced)
            yield batch

    def note(self, replaced: Iterable[ReplacedImage]) -> None:
        """Add replaced images to the pending ones."""
        for one in replaced:
            if one.image not in self._seen:
                self._pending[one.image] = one

    def share(self) -> None:
        """Exchange and report new bad images, in the order of the ranks. Raises DataError on all ranks for too many."""
        gathered = self._world.gather([tuple(one) for one in self._pending.values()])
        self._pending.clear()
        for image, reason, replacement in (fields for of_rank in gathered for fields in of_rank):
            if image not in self._seen:
                self._seen.add(image)
                self._warn(
                    f"warning: {reason}; replaced by {replacement} "
                    f"({self.count} bad images, at most {self._limit} allowed)"
                )
                with self._world.agreeing():
                    self._check(reason)

    def _check(self, reason: str) -> None:
        if self.count > self._limit:
            raise DataError(
                f"{self.count} images cannot be used, more than data.max_bad_images ({self._limit}); the last one: "
                f"{reason}. Check the disk, restore the images, or raise data.max_bad_images"
            )
