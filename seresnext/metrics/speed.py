"""The speed of a run and the remaining time, measured with the monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

Clock = Callable[[], float]


class Speed(NamedTuple):
    """The speed over one window of steps.

    images_per_second: images over the whole time, including the time that steps waited for data.
    data_wait: mean time in seconds that a step waited for its batch.
    seconds_per_step: mean time in seconds of a step, including the wait.

    All are None in a window without a step.
    """

    images_per_second: float | None
    data_wait: float | None
    seconds_per_step: float | None = None


class SpeedMeter:
    """A meter of windows of training steps. The time inside `paused()` (validation, saving) does not count."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._paused = 0.0
        self._images = self._steps = 0
        self._data_wait = 0.0
        self._start = self._now()
        self._ends: dict[str, tuple[float, int, int, float]] = {}

    def _now(self) -> tuple[float, int, int, float]:
        """Return the time without pauses, and the sums since the start: images, steps, seconds of waiting."""
        return self._clock() - self._paused, self._images, self._steps, self._data_wait

    def add(self, images: int, data_wait: float = 0.0) -> None:
        """Count a step of `images` images (over all ranks) that waited `data_wait` seconds for its batch."""
        self._images += images
        self._steps += 1
        self._data_wait += data_wait

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def read(self, window: str) -> Speed:
        """Return the speed since the last read of a window."""
        now, before = self._now(), self._ends.get(window, self._start)
        self._ends[window] = now
        seconds, images, steps, data_wait = (a - b for a, b in zip(now, before, strict=True))
        if not steps:
            return Speed(None, None)
        return Speed(images / max(seconds, 1e-9), data_wait / steps, seconds / steps)


class EtaClock:
    """An estimator of the time until the last step, from the mean pace of this process with validations and saves.

    Measuring starts at the first update. The first step, which compiles and warms up, is therefore excluded.
    """

    def __init__(self, total_steps: int, clock: Clock = time.monotonic) -> None:
        self._total = total_steps
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def update(self, step: int) -> float | None:
        """Return the remaining seconds after `step` completed steps; None until a second step was seen."""
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        if step <= first_step:
            return None
        return (now - first_time) / (step - first_step) * (self._total - step)
