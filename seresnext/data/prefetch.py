"""From uint8 batches on the host to normalised batches on the device, one batch ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from seresnext.data.loader import Batch


class DeviceBatch(NamedTuple):
    """A batch on the device: `images` N C H W normalised, `labels` int64 N; `data_wait` in seconds."""

    images: Tensor
    labels: Tensor
    step: int
    replica: int
    data_wait: float


def prefetch(
    batches: Iterator[Batch],
    *,
    device: torch.device,
    dtype: torch.dtype,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
) -> Iterator[DeviceBatch]:
    """Copy, mirror and normalise batches on the device, one ahead of the one in use.

    On CUDA this happens on a stream of its own beside the training step; on the CPU the same code runs without
    streams. `mean` and `std` are of pixels scaled to 0..1. `data_wait` is how long the loader was waited for.
    """
    prepare = _Preparation(device, dtype, mean, std, channels_last)
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    if side:
        side.wait_stream(torch.cuda.current_stream(device))  # It reads the mean and deviation made on this one.
    upcoming: DeviceBatch | None = None
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        waited = time.monotonic() - started
        with torch.cuda.stream(side) if side else nullcontext():
            following = prepare(batch, waited) if batch else None
        if upcoming is not None:
            yield upcoming
        if following is None:
            return
        if side:
            torch.cuda.current_stream(device).wait_stream(side)
            for tensor in (following.images, following.labels):
                tensor.record_stream(torch.cuda.current_stream(device))
        upcoming = following


class _Preparation:
    def __init__(
        self, device: torch.device, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float], channels_last: bool
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        # (x / 255 - mean) / std, as one subtraction and one division.
        self._mean = 255 * torch.tensor(mean, dtype=dtype, device=device).view(1, -1, 1, 1)
        self._std = 255 * torch.tensor(std, dtype=dtype, device=device).view(1, -1, 1, 1)

    def __call__(self, batch: Batch, waited: float) -> DeviceBatch:
        images = batch.images.to(self._device, non_blocking=True)
        flips = batch.flips.to(self._device, non_blocking=True).view(-1, 1, 1, 1)
        images = torch.where(flips, images.flip(3), images)
        images = images.to(dtype=self._dtype, memory_format=self._layout).sub_(self._mean).div_(self._std)
        labels = batch.labels.to(self._device, non_blocking=True)
        return DeviceBatch(images, labels, batch.step, batch.replica, waited)
