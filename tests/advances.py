"""A recorder of progress bars, for tests that each bar ends at 100 %."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import pytest


class RecordedBar(NamedTuple):
    label: str
    total: int
    counts: list[int]

    def assert_adds_up(self, at_least: int = 2) -> None:
        """Assert that the counts add up to the total, in at least `at_least` calls."""
        assert sum(self.counts) == self.total > 0
        assert sum(count > 0 for count in self.counts) >= at_least
        assert min(self.counts) >= 0


def record_bars(module: ModuleType, patch: pytest.MonkeyPatch) -> list[RecordedBar]:
    bars: list[RecordedBar] = []

    @contextmanager
    def progress(label: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
        bars.append(RecordedBar(label, total, []))
        yield bars[-1].counts.append

    patch.setattr(module, "progress", progress)
    return bars
