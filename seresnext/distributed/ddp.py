"""Gradients averaged over ranks by DistributedDataParallel (DDP) in the backward pass, and the times of each rank."""

import socket
import time
import warnings
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

_BUCKET_MB = 25  # MiB of gradients that are sent together. Without a number torch would begin with a smaller bucket.


class RankTimes(NamedTuple):
    """The work of a rank: mean seconds a step for the wait for images (`data`) and for `computing`."""

    host: str
    data: float
    computing: float


class RankTimer:
    """A stopwatch for the work of one rank in the training steps, without the time that the rank waits for others.

    `data` is the wait for images. `computing` lasts from the arrival of a micro-batch until all gradients are ready. In
    the last micro-batch of a step, this is the moment in which DDP sends the last bucket: only then the rank begins to
    wait for other ranks.

    Host and device never wait for the stopwatch. On CUDA, events in the stream of the work mark both ends. An event is
    read only after the device has passed it, so at most the events of the steps in the queue are in memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._started: Any = None  # seconds, or an event on a GPU
        self._passing: deque[tuple[Any, Any]] = deque()
        self._data = self._computing = 0.0
        self._steps: set[int] = set()

    def start(self, step: int, data_wait: float) -> None:
        """Start to measure a micro-batch of a step. The micro-batch has arrived after `data_wait` seconds."""
        self._steps.add(step)
        self._data += data_wait
        self._started = self._now()
        self._collect()

    def stop(self) -> None:
        """End the measurement of a micro-batch, unless it has ended, or the backward pass is the warm-up."""
        if self._started is not None:
            self._passing.append((self._started, self._now()))
            self._started = None

    def read(self) -> RankTimes:
        """Return the mean times over the steps since the last read. The device has completed these steps."""
        self._collect()
        steps = max(len(self._steps), 1)
        times = RankTimes(socket.gethostname(), self._data / steps, self._computing / steps)
        self._data = self._computing = 0.0
        self._steps.clear()
        return times

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _collect(self) -> None:
        """Add the times of the micro-batches that the device has completed."""
        while self._passing and (not self._on_gpu or self._passing[0][1].query()):
            started, ready = self._passing.popleft()
            self._computing += started.elapsed_time(ready) / 1000 if self._on_gpu else ready - started


def wrap_ddp(model: nn.Module, compress: bool, timer: RankTimer) -> DistributedDataParallel:
    """Return the model in DDP, which averages gradients over ranks and does nothing else. Stop the timer in each pass.

    With `compress` gradients are sent and summed as bfloat16: half the traffic, and 8 bits of precision.
    BatchNormStatistics averages the buffers. DDP would broadcast the buffers of rank 0, and the statistics of the other
    ranks would be lost. Gradients are views of the buckets, so no gradient is copied.
    """
    with warnings.catch_warnings():
        # Older supported releases of torch lack the new name of `broadcast_buffers`, which is forward_sync_buffers.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        ddp = DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=_BUCKET_MB
        )
    reduce = bf16_compress_hook if compress else allreduce_hook

    def hook(group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.is_last():
            timer.stop()
        return reduce(group, bucket)

    ddp.register_comm_hook(None, hook)
    return ddp
