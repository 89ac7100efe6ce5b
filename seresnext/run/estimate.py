"""Estimates from a few measurements: median and range, the peak of memory, and the time of a whole run."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch

_DAY = 86400


class Spread(NamedTuple):
    """The median and the range of repeated measurements of one number."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def rate(self, count: float) -> Spread:
        """Return the spread of `count` items a second, for a spread of seconds."""
        return Spread(count / self.median, count / self.high, count / self.low)

    def times(self, factor: float, more: float = 0.0) -> Spread:
        """Return the spread times a factor, plus `more`."""
        return Spread(*(factor * value + more for value in self))

    def text(self, form: Callable[[float], str] | None = None) -> str:
        """Return `12.3 (11.9 to 12.8)`, or the number alone if there is no range."""
        median, low, high = map(form or number, self)
        return median if low == high else f"{median} ({low} to {high})"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has used: of its GPU, or of the host if the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # The kernel counts kibibytes.


def number(value: float) -> str:
    """Return a number with three digits, or a whole number from 100 on: `0.0123`, `12.3`, `1,234`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return `1:02:03`, or `12.3 days` above two days."""
    return f"{seconds / _DAY:,.1f} days" if seconds > 2 * _DAY else str(timedelta(seconds=round(seconds)))
