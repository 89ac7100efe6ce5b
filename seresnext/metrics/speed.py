"""The speed of a run and the remaining time, measured with the monotonic clock, and the use of the GPU."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Speed(NamedTuple):
    """The speed over one window of steps. All numbers are None in a window without a step.

    images_per_second: images over the whole time, including the time that steps waited for data.
    data_wait: mean time in seconds that a step waited for its batch.
    seconds_per_step: mean time in seconds of a step, including the wait.
    """

    images_per_second: float | None
    data_wait: float | None
    seconds_per_step: float | None = None


class SpeedMeter:
    """A meter of windows of training steps. The time inside `paused()` (validation, saving) does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paused = 0.0
        self._images = self._steps = 0
        self._data_wait = 0.0
        self._start = self._now()
        self._ends: dict[str, tuple[float, int, int, float]] = {}
        self._first: tuple[int, float] | None = None  # step and time

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
        yield
        self._paused += self._clock() - start

    def read(self, window: str) -> Speed:
        """Return the speed since the last read of a window."""
        now, before = self._now(), self._ends.get(window, self._start)
        self._ends[window] = now
        seconds, images, steps, data_wait = (a - b for a, b in zip(now, before, strict=True))
        if not steps:
            return Speed(None, None)
        return Speed(images / max(seconds, 1e-9), data_wait / steps, seconds / steps)

    def seconds_left(self, step: int, total: int) -> float | None:
        """Return the seconds from `step` completed steps to `total`, at the mean pace with pauses. None at first.

        The pace counts from the first call, and so without the first step, which compiles and warms up.
        """
        first_step, first_time = self._first = self._first or (step, self._clock())
        if step <= first_step:
            return None
        return (self._clock() - first_time) / (step - first_step) * (total - step)


def device_usage(device: torch.device) -> dict[str, float]:
    """Return the peak of allocated memory in GiB since the last call, and the utilisation in percent (not on a CPU)."""
    if device.type != "cuda":
        return {}
    usage = {"gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 2**30}
    torch.cuda.reset_peak_memory_stats(device)
    try:
        return {**usage, "gpu_utilisation": torch.cuda.utilization(device)}
    except Exception:  # The package is missing, or the driver refuses (MIG, containers).
        return usage
