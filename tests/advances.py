"""What is told of the progress of long work, for tests that it adds up: a bar that stops at 93 % looks like a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import pytest


@dataclass
class Told:
    """One bar: what it was begun with, and how it went on."""

    label: str
    total: int
    counts: list[int] = field(default_factory=list)

    def assert_adds_up(self, at_least: int = 2) -> None:
        """All of the total was told, no more, in no fewer than `at_least` pieces."""
        assert sum(self.counts) == self.total > 0
        assert sum(count > 0 for count in self.counts) >= at_least
        assert min(self.counts) >= 0


def update_progress(module: ModuleType, patch: pytest.MonkeyPatch) -> list[Told]:
    """The bars that a module begins with `progress` from now on."""
    bars: list[Told] = []

    @contextmanager
    def progress(label: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
        bars.append(Told(label, total))
        yield bars[-1].counts.append

    patch.setattr(module, "progress", progress)
    return bars
