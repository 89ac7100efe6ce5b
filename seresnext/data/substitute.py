"""Replacement of bad images by images of the same class, and a count of bad images with a limit."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

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


def candidates(labels: np.ndarray, seed: int, address: tuple[int, int, int]) -> list[int]:
    """Return the images that may replace the image at an address (epoch, image, copy), in the order of the attempts.

    The images are those of the class, from a position drawn for the address: the same on each worker and resume.
    """
    image = address[1]
    members = np.flatnonzero(labels == labels[image])
    start = rng_at(seed, "substitute", *address).randint(len(members))
    tried = np.roll(members, -start)[: _MOST_TRIED + 1]
    return tried[tried != image].tolist()


class BadImageCounter:
    """The number of different bad images of all ranks since the start of the process.

    An image may come to another rank in the next epoch, so no rank can count alone. `note` collects the bad images of
    this rank, and `share`, called by all ranks, exchanges and reports them, and ends the run after more than `limit`.
    """

    def __init__(self, limit: int, world: World, warn: Callable[[str], None]) -> None:
        self._limit = limit
        self._world = world
        self._warn = warn
        self._seen: set[int] = set()
        self._pending: dict[int, ReplacedImage] = {}

    @property
    def pending(self) -> int:
        """The number of new bad images that only this rank knows."""
        return len(self._pending)

    def note(self, replaced: Iterable[ReplacedImage]) -> None:
        """Add replaced images to the pending ones."""
        self._pending.update({one.image: one for one in replaced if one.image not in self._seen})

    def share(self) -> None:
        """Exchange and report new bad images, in the order of the ranks. Raises DataError on all ranks for too many."""
        gathered = self._world.gather([tuple(one) for one in self._pending.values()])
        self._pending.clear()
        for image, reason, replacement in (fields for of_rank in gathered for fields in of_rank):
            if image in self._seen:
                continue
            self._seen.add(image)
            count = len(self._seen)
            self._warn(f"warning: {reason}; replaced by {replacement} ({count} bad images of at most {self._limit})")
            with self._world.agreeing():
                if count > self._limit:
                    raise DataError(
                        f"{count} images cannot be used, more than data.max_bad_images ({self._limit}); the last one: "
                        f"{reason}. Check the disk, restore the images, or raise data.max_bad_images"
                    )
