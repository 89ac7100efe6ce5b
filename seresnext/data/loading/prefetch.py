"""Preparation of batches on the device, one batch ahead: copy, mirror, normalise, erase."""

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

    `unreadable` is a copy of the field of the host's batch.
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
    fill: EraseFill | None = None,
    compiled: bool = False,
) -> Iterator[DeviceBatch]:
    """Yield batches that were copied to the device, mirrored, normalised and erased, one batch ahead of use.

    On CUDA, a separate stream does this during the training step; on the CPU, the same code runs without streams. Two
    batches are in memory, the current and the next. `mean` and `std` are for pixels in 0..1. `fill` is for batches with
    boxes. `compiled` fuses the work into one kernel. `data_wait` is the wait for the loader.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # (x / 255 - mean) / std, as one subtraction and one division.
    scaled_mean, scaled_std = (
        255 * torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1) for values in (mean, std)
    )
    # One kernel for all sizes: the last batch of an epoch may be short, and progressive sizes grow.
    normalise = torch.compile(_normalise, dynamic=True) if compiled else _normalise

    def prepare(batch: Batch, waited: float) -> DeviceBatch:
        images, flips, labels = (
            tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.flips, batch.labels)
        )
        boxes = values = None
        if batch.boxes is not None:
            assert fill is not None, "boxes to erase need a fill"
            boxes = batch.boxes.to(device, non_blocking=True)
            values = fill.like(images, dtype, batch.step, batch.replica)
        images = normalise(images, flips, scaled_mean, scaled_std, layout, boxes, values)
        return DeviceBatch(images, labels, batch.step, batch.replica, waited, batch.unreadable)

    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream:
        stream.wait_stream(torch.cuda.current_stream(device))  # The current stream made the mean and the deviation.
    upcoming: DeviceBatch | None = None
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        waited = time.monotonic() - started
        with torch.cuda.stream(stream) if stream else nullcontext():
            following = prepare(batch, waited) if batch else None
        del batch
        if upcoming is not None:
            yield upcoming
        if following is None:
            return
        if stream:
            torch.cuda.current_stream(device).wait_stream(stream)
            for tensor in (following.images, following.labels):
                tensor.record_stream(torch.cuda.current_stream(device))
        upcoming = following


def _normalise(
    images: Tensor,
    flips: Tensor,
    mean: Tensor,
    std: Tensor,
    layout: torch.memory_format,
    boxes: Tensor | None,
    fill: Tensor | None,
) -> Tensor:
    """Mirror, cast, lay out, normalise and erase uint8 images (N C H W)."""
    images = torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)
    images = images.to(dtype=mean.dtype, memory_format=layout).sub_(mean).div_(std)
    if boxes is not None and fill is not None:
        images = erase(images, boxes, fill).contiguous(memory_format=layout)
    return images
