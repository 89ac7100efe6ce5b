"""From uint8 batches on the host to normalised batches on the device, one batch ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from seresnext.data.augment.erase import EraseFill, erase
from seresnext.data.batches import Batch


class DeviceBatch(NamedTuple):
    """A batch on the device: `images` N C H W normalised, `labels` int64 N; `data_wait` in seconds.

    `unreadable` is copied from the batch on the host.
    """

    images: Tensor
    labels: Tensor
    step: int
    replica: int
    data_wait: float
    unreadable: tuple[tuple[int, str], ...] = ()


def prefetch(
    batches: Iterator[Batch],
    *,
    device: torch.device,
    dtype: torch.dtype,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    filling: EraseFill | None = None,
    compiled: bool = False,
) -> Iterator[DeviceBatch]:
    """Copy, mirror, normalise and erase batches on the device, one ahead of the one in use.

    On CUDA this happens on a stream of its own beside the training step; on the CPU the same code runs without
    streams. Two batches are held, the one handed out last and the next. `mean` and `std` are of pixels scaled to 0..1,
    `filling` is for the boxes of batches that have some, `compiled` makes one kernel of it all. `data_wait` is how long
    the loader was waited for.
    """
    prepare = _Preparation(device, dtype, mean, std, channels_last, filling, compiled)
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
        del batch
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
        self,
        device: torch.device,
        dtype: torch.dtype,
        mean: Sequence[float],
        std: Sequence[float],
        channels_last: bool,
        filling: EraseFill | None,
        compiled: bool,
    ) -> None:
        self._device = device
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        # (x / 255 - mean) / std, as one subtraction and one division.
        self._mean = 255 * torch.tensor(mean, dtype=dtype, device=device).view(1, -1, 1, 1)
        self._std = 255 * torch.tensor(std, dtype=dtype, device=device).view(1, -1, 1, 1)
        self._filling = filling
        # One kernel for all sizes: the last batch of an epoch may be short, and progressive sizes grow.
        self._normalise = torch.compile(_normalise, dynamic=True) if compiled else _normalise

    def __call__(self, batch: Batch, waited: float) -> DeviceBatch:
        images, flips, labels = (
            tensor.to(self._device, non_blocking=True) for tensor in (batch.images, batch.flips, batch.labels)
        )
        boxes = filling = None
        if batch.boxes is not None:
            assert self._filling is not None, "boxes to erase, and nothing to fill them with"
            boxes = batch.boxes.to(self._device, non_blocking=True)
            filling = self._filling.like(images, self._mean.dtype, batch.step, batch.replica)
        images = self._normalise(images, flips, self._mean, self._std, self._layout, boxes, filling)
        return DeviceBatch(images, labels, batch.step, batch.replica, waited, batch.unreadable)


def _normalise(
    images: Tensor,
    flips: Tensor,
    mean: Tensor,
    std: Tensor,
    layout: torch.memory_format,
    boxes: Tensor | None,
    filling: Tensor | None,
) -> Tensor:
    """Mirror, cast, lay out, normalise and erase uint8 images (N C H W)."""
    images = torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)
    images = images.to(dtype=mean.dtype, memory_format=layout).sub_(mean).div_(std)
    if boxes is not None and filling is not None:
        images = erase(images, boxes, filling).contiguous(memory_format=layout)
    return images
