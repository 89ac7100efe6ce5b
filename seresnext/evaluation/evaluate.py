"""Accuracy and loss of a model over a split: each image once, on any number of ranks.

Batches are cut the same way at every world size and dealt to the ranks. Summed over ranks are whole numbers, and for
the loss one number a batch, which only one rank has; these are then added up in the order of the batches. So the result
does not depend on the number of ranks by a single bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.evaluation.metrics import topk_correct
from seresnext.runtime import Precision

_MOST_LISTED = 100  # unreadable images in one message


@dataclass(frozen=True)
class Evaluation:
    """Top-1 and top-5 accuracy in percent (0 to 100), mean cross-entropy without smoothing, and how it was measured.

    `loss` is not finite when the model's output is not finite for some image; images with NaN count as wrong.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    images_per_second: float


def evaluate(
    model: nn.Module,
    batches: Iterator[DeviceBatch],
    *,
    num_batches: int,
    world: World,
    precision: Precision,
    stop_requested: Callable[[], bool] = lambda: False,
    on_round: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Evaluate a model on this rank's share of a split, and sum over the world.

    `num_batches` is that of the whole split; `batches` yields those numbered rank, rank + size and so on, so that ranks
    may have one fewer than others. `on_round` is called after each. Returns None when any rank was asked to stop. The
    model is left in the mode it was in. A process alone waits for its GPU only at the end; ranks also wait for each
    other's answer about a stop, once a batch, which is little beside a batch.

    After the last batch, raises DataError on all ranks with the unreadable images of all batches.
    """
    correct = torch.zeros(2, dtype=torch.int64, device=world.device)
    images = 0
    unreadable: list[tuple[int, str]] = []
    losses = torch.zeros(num_batches, dtype=torch.float64, device=world.device)
    was_training = model.training
    model.eval()
    started = time.monotonic()
    try:
        for _ in range(math.ceil(num_batches / world.size)):
            if world.any(stop_requested()):
                return None
            batch = next(batches, None)
            if batch is not None:
                batch_correct, losses[batch.step] = _measure(model, batch, precision, world.device)
                correct += batch_correct
                images += len(batch.labels)
                unreadable += batch.unreadable
            on_round()
    finally:
        model.train(was_training)
    counts = torch.cat([correct, correct.new_tensor([images, len(unreadable)])])
    top1, top5, images, num_unreadable = world.sum_(counts).tolist()
    if num_unreadable:
        raise _refusal([image for own in world.gather(unreadable) for image in own])
    return Evaluation(
        top1=100 * top1 / images,
        top5=100 * top5 / images,
        loss=math.fsum(world.sum_(losses).tolist()) / images,
        num_images=images,
        images_per_second=images / (time.monotonic() - started),
    )


def _refusal(unreadable: list[tuple[int, str]]) -> DataError:
    """Return the error that every rank raises. The message lists the images in the order of the split."""
    messages = [message for _, message in sorted(unreadable)]
    more = len(messages) - _MOST_LISTED
    listing = "\n  ".join(messages[:_MOST_LISTED]) + (f"\n  and {more} more" if more > 0 else "")
    error = DataError(
        messages[0] if len(messages) == 1 else f"{len(messages)} images to validate on cannot be used:\n  {listing}"
    )
    error.is_shared = True
    return error


@torch.inference_mode()
def _measure(model: nn.Module, batch: DeviceBatch, precision: Precision, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images right in the first 1 and in the first 5 (int64, 2), and the sum of all losses (float64)."""
    with precision.autocast(device):
        logits = model(batch.images)
    loss = F.cross_entropy(logits.double(), batch.labels, reduction="sum")
    return topk_correct(logits, batch.labels), loss
