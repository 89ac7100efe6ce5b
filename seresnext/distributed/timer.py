"""The time that each rank needs for its own work, without the time that the rank waits for other ranks."""

import socket
import time
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class RankTimes(NamedTuple):
    """The work of a rank: mean seconds a step for the wait for images (`data`) and for `computing`."""

    host: str
    data: float
    computing: float


class RankTimer:
    """A stopwatch for the work of one rank in the training steps. Host and device never wait for the stopwatch.

    `data` is the wait for images. `computing` lasts from the arrival of a micro-batch until the last gradient of the
    backward pass is ready: DDP then sends the last bucket, and only then the rank begins to wait for other ranks. The
    last gradient belongs to the first layer, so a hook of the first trained parameter sees this moment. A communication
    hook of DDP would see the same moment, but a Python hook replaces the all-reduce of DDP, divides whole buckets in
    place of single gradients, and runs for every bucket.

    On CUDA, events in the stream of the work mark both ends. An event is read only after the device has passed it, so
    at most the events of the steps in the queue are in memory.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._hook: RemovableHandle | None = None
        self.attach(model)
        self._on_gpu = device.type == "cuda"
        self._started: Any = None  # seconds, or an event on a GPU
        self._passing: deque[tuple[Any, Any]] = deque()
        self._data = self._computing = 0.0
        self._steps: set[int] = set()

    def attach(self, model: nn.Module) -> None:
        """Measure until the gradient of the first parameter that trains now."""
        if self._hook:
            self._hook.remove()
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        self._hook = first.register_post_accumulate_grad_hook(self._stop)

    def start(self, step: int, data_wait: float) -> None:
        """Start to measure a micro-batch of a step. The micro-batch has arrived after `data_wait` seconds."""
        self._steps.add(step)
        self._data += data_wait
        self._started = self._now()
        self._collect()

    def read(self) -> RankTimes:
        """Return the mean times over the steps since the last read. The device has completed these steps."""
        self._collect()
        steps = max(len(self._steps), 1)
        times = RankTimes(socket.gethostname(), self._data / steps, self._computing / steps)
        self._data = self._computing = 0.0
        self._steps.clear()
        return times

    def _stop(self, _: Tensor) -> None:
        if self._started is not None:  # None: the backward pass is the warm-up.
            self._passing.append((self._started, self._now()))
            self._started = None

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
