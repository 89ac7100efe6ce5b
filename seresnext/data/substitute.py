"""Images that cannot be used: another of the same class takes the place, is counted and told, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.randomness import rng_at

# A class of which this many images in a row are bad is no class with a bad image.
_MOST_TRIED = 20

ADVICE = "or replace bad images by others of the class with data.on_error=substitute"
"""The fix for a bad training image, appended to the message about the image."""


class ReplacedImage(NamedTuple):
    """An image that was replaced: its index, the message that names it and says why, the name of the other one."""

    image: int
    reason: str
    replacement: str


class Noted(Protocol):
    """What says which of its images were replaced: a batch."""

    @property
    def replaced(self) -> tuple[ReplacedImage, ...]: ...


NotedT = TypeVar("NotedT", bound=Noted)


def candidates(labels: np.ndarray, seed: int, address: tuple[int, int, int]) -> Iterator[int]:
    """The images that may replace the one at an address (epoch, image, copy), in the order in which to try them.

    They are of its class and start at a place drawn for the address, so they are the same for any worker, rank and
    resume; whether a candidate is good is a property of its file.
    """
    index = address[1]
    members = np.flatnonzero(labels == labels[index])
    start = rng_at(seed, "substitute", *address).randint(len(members))
    for offset in range(min(len(members), _MOST_TRIED + 1)):
        candidate = int(members[(start + offset) % len(members)])
        if candidate != index:
            yield candidate


class BadImageCounter:
    """Counts the images that were replaced, on all ranks together: `say` tells each once, and too many end the run.

    An image comes to another rank in another epoch, so what one rank alone knows is neither all nor new. A rank notes
    what it meets, `pending` is how much of that the others have not heard of, and `share` tells them, where all of them
    call it. The count is that of this process's life.
    """

    def __init__(self, limit: int, world: World, say: Callable[[str], None]) -> None:
        self._limit = limit
        self._world = world
        self._say = say
        self._seen: set[int] = set()
        self._pending: dict[int, ReplacedImage] = {}

    @property
    def count(self) -> int:
        """How many images were replaced so far, each counted once, that all ranks know of."""
        return len(self._seen)

    @property
    def pending(self) -> int:
        """How many of this rank's the others do not know of."""
        return len(self._pending)

    def watch(self, batches: Iterable[NotedT]) -> Iterator[NotedT]:
        """The batches, each after its substitutions are noted."""
        for batch in batches:
            self.note(batch.replaced)
            yield batch

    def note(self, substitutions: Iterable[ReplacedImage]) -> None:
        """Note the substitutions of a batch."""
        for substitution in substitutions:
            if substitution.image not in self._seen:
                self._pending[substitution.image] = substitution

    def share(self) -> None:
        """Tell what is new on any rank, in the order of the ranks. Raises DataError on all of them for too many."""
        gathered = self._world.gather([tuple(one) for one in self._pending.values()])
        self._pending.clear()
        for substitution in (ReplacedImage(*one) for own in gathered for one in own):
            if substitution.image not in self._seen:
                self._seen.add(substitution.image)
                self._say(
                    f"warning: {substitution.reason}; {substitution.replacement} takes its place "
                    f"({self.count} of at most {self._limit} so far)"
                )
                self._world.together(partial(self._check, substitution.reason))

    def _check(self, reason: str) -> None:
        if self.count > self._limit:
            raise DataError(
                f"{self.count} images cannot be used, more than data.max_bad_images ({self._limit}), the last: "
                f"{reason}. Is the disk failing? Restore the images or raise the limit"
            )
