"""Accuracy and loss of a model over a split: each image once, on any number of ranks.

Batches are cut the same way at every world size and dealt to the ranks, and what is summed over ranks are integers, so
the result does not depend on the number of ranks by a single bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seresnext.data.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.metrics.accuracy import topk_correct
from seresnext.runtime import Precision

# Losses are summed in whole units of 2^-24, with a loss over 10,000 counted as 10,000: the sum over 14 million images
# then still fits 63 bits, and the mean is exact to 3e-8, finer than float32 computes a loss.
_LOSS_UNIT = 2.0**-24
_LARGEST_LOSS = 1e4


@dataclass(frozen=True)
class Evaluation:
    """Top-1 and top-5 accuracy in percent (0 to 100), mean cross-entropy without smoothing, and how it was measured.

    `loss` is not a number when the model's output is not finite for some image; such images count as wrong.
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
    rounds: int,
    world: World,
    precision: Precision,
    stop_requested: Callable[[], bool] = lambda: False,
    on_round: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Evaluate a model on this rank's share of a split, and sum over the world.

    `batches` yields at most `rounds` batches; ranks may have one fewer than others. `on_round` is called after each.
    Returns None when any rank was asked to stop. The model is left in the mode it was in.
    """
    totals = torch.zeros(5, dtype=torch.int64, device=world.device)
    was_training = model.training
    model.eval()
    started = time.monotonic()
    try:
        for _ in range(rounds):
            if world.any(stop_requested()):
                return None
            batch = next(batches, None)
            if batch is not None:
                totals += _count(model, batch, precision, world.device)
            on_round()
    finally:
        model.train(was_training)
    top1, top5, loss, unbounded, images = world.sum_(totals).tolist()
    return Evaluation(
        top1=100 * top1 / images,
        top5=100 * top5 / images,
        loss=math.nan if unbounded else loss * _LOSS_UNIT / images,
        num_images=images,
        images_per_second=images / (time.monotonic() - started),
    )


@torch.inference_mode()
def _count(model: nn.Module, batch: DeviceBatch, precision: Precision, device: torch.device) -> Tensor:
    """Correct in the first 1 and 5, loss in units, images without a finite loss, and images, as integers (5)."""
    with precision.autocast(device):
        logits = model(batch.images)
    losses = F.cross_entropy(logits.double(), batch.labels, reduction="none")
    finite = losses.isfinite()
    units = (losses.nan_to_num(0.0).clamp(max=_LARGEST_LOSS) / _LOSS_UNIT).round().long()
    counts = torch.stack([units.sum(), (~finite).sum(), torch.tensor(len(losses), device=device)])
    return torch.cat([topk_correct(logits, batch.labels), counts])
