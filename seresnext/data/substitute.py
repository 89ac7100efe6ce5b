"""Images that cannot be used: another of the same class takes the place, is counted and told, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from seresnext.errors import DataError
from seresnext.randomness import rng_at

# A class of which this many images in a row are bad is no class with a bad image.
_MOST_TRIED = 20


class Substitution(NamedTuple):
    """An image that was replaced: its index, the message that names it and says why, the name of the other one."""

    image: int
    reason: str
    replacement: str


class Noted(Protocol):
    """What says which of its images were replaced: a batch."""

    @property
    def substitutions(self) -> tuple[Substitution, ...]: ...


NotedT = TypeVar("NotedT", bound=Noted)


def candidates(labels: np.ndarray, seed: int, address: tuple[int, int, int]) -> Iterator[int]:
    """The images that may replace the one at an address (epoch, image, copy), in the order in which to try them.

    They are of its class and start at a place drawn for the address, so they are the same for any worker, rank and
    resume; whether a candidate is good is a property of its file.
    """
    index = address[1]
    members = np.flatnonzero(labels == labels[index])
    start = rng_at(seed, "substitute", *address).integer(len(members))
    for offset in range(min(len(members), _MOST_TRIED + 1)):
        candidate = int(members[(start + offset) % len(members)])
        if candidate != index:
            yield candidate


class Tally:
    """Counts the images that a rank had to replace: `say` tells each once, and beyond `limit` of them the run stops."""

    def __init__(self, limit: int, say: Callable[[str], None]) -> None:
        self._limit = limit
        self._say = say
        self._seen: set[int] = set()

    @property
    def count(self) -> int:
        """How many images were replaced, each counted once."""
        return len(self._seen)

    def note(self, substitutions: Iterable[Substitution]) -> None:
        """Note the substitutions of a batch. Raises DataError when they are too many."""
        for image, reason, replacement in substitutions:
            if image in self._seen:
                continue
            self._seen.add(image)
            self._say(
                f"warning: {reason}; {replacement} takes its place ({self.count} of at most {self._limit} so far)"
            )
            if self.count > self._limit:
                raise DataError(
                    f"{self.count} images cannot be used, more than data.max_bad_images ({self._limit}), the last: "
                    f"{reason}. Is the disk failing? Restore the images or raise the limit"
                )

    def watch(self, batches: Iterable[NotedT]) -> Iterator[NotedT]:
        """The batches, each after its substitutions are noted."""
        for batch in batches:
            self.note(batch.substitutions)
            yield batch
