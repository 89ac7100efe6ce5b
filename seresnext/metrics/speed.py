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

    Both are None in a window without a step.
    """

    images_per_second: float | None
    data_wait: float | None


class SpeedMeter:
    """A meter of windows of training steps. The time inside `paused()` (validation, saving) does not count."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._restart()

    def _restart(self) -> None:
        self._start = self._clock()
        self._images = self._steps = 0
        self._data_wait = 0.0

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
            self._start += self._clock() - start

    def read(self) -> Speed:
        """Return the speed since the last read, and start a new window."""
        seconds = max(self._clock() - self._start, 1e-9)
        speed = Speed(self._images / seconds, self._data_wait / self._steps) if self._steps else Speed(None, None)
        self._restart()
        return speed


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
