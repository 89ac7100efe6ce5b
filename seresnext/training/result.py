"""The result of an optimizer step: on its way to the host, and on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """The result of a step, equal on all ranks.

    `losses` has one loss for each logical replica. `grad_norm` is the L2 norm of the whole gradient before clipping.
    `correct` counts the images whose label, or larger label of a mixed image, had the highest logit.
    `data_wait` is the mean over ranks of the seconds spent waiting for images. `stop`: a rank was asked to stop.
    `save_failed`: rank 0 could not write its last checkpoint. `bad_images` counts replaced images that not all ranks
    know. `skipped`: the step changed nothing, because a loss or the gradient was not finite. `loss_scale` is the
    factor of the loss in fp16, and 1 in other precisions.
    """

    step: int
    losses: tuple[float, ...]
    grad_norm: float
    data_wait: float
    stop: bool
    save_failed: bool = False
    skipped: bool = False
    loss_scale: float = 1.0
    bad_images: int = 0
    correct: int = 0

    @property
    def loss(self) -> float:
        """Return the mean loss over the global batch."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def overflowed(self) -> bool:
        """Return whether the step was skipped because fp16 scaled the loss so high that the gradient is not finite.

        This is normal: the scaler tries higher scales and lowers them again. At scale 1 the scaler is not the cause.
        """
        return self.skipped and self.loss_scale > 1 and all(map(math.isfinite, self.losses))


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how many rows of logits (N K) have their maximum at the label (scalar, on the device).

    `targets` are labels N, or soft targets N K of mixed images, whose larger label counts, as in torchvision's
    references/classification/utils.py. The host does not wait for the device.
    """
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.argmax(1) == labels).sum()


class PendingResult(NamedTuple):
    """The result of step number `step` on its way to the host.

    The copy to `numbers` is complete when the event `arrival` has passed. None: the numbers are complete.
    """

    step: int
    world_size: int
    numbers: Tensor
    arrival: torch.cuda.Event | None

    @classmethod
    def queue(cls, step: int, world_size: int, numbers: Tensor) -> PendingResult:
        """Queue the copy to the host. On CUDA neither the host nor later kernels wait for the copy."""
        if numbers.device.type != "cuda":
            return cls(step, world_size, numbers, None)
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        on_host.copy_(numbers, non_blocking=True)
        arrival = torch.cuda.Event(blocking=True)  # A blocking wait leaves the CPU core to the loader's workers.
        arrival.record()
        return cls(step, world_size, on_host, arrival)

    def result(self) -> StepResult:
        """Wait until the device has finished the step, and return the result. Steps queued later are not awaited."""
        if self.arrival:
            self.arrival.synchronize()
        *losses, stop, save_failed, bad_images, data_wait, correct, grad_norm, skipped, loss_scale = (
            self.numbers.tolist()
        )
        return StepResult(
            self.step,
            tuple(losses),
            grad_norm,
            data_wait / self.world_size,
            stop=stop > 0,
            save_failed=save_failed > 0,
            skipped=skipped > 0,
            loss_scale=loss_scale,
            bad_images=round(bad_images),
            correct=round(correct) if math.isfinite(correct) else 0,
        )
