"""Evaluation of a model on a split. Each image counts once on any number of ranks.

The batches are the same for every world size, and each rank evaluates some of the batches. Every metric of a batch is
one float64 number of one rank, so the sum over the ranks is exact. `math.fsum` then adds the batches in their order.
Balanced accuracy and macro F1 come from counts of images, whose sums are exact.
The result is therefore equal to the bit for any number of ranks.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.errors import DataError, listed
from seresnext.evaluation.statistics import class_means
from seresnext.runtime import Precision

_MAX_LISTED = 100  # unreadable images in one message


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    metrics: means over all images, by the names in `METRICS`. Accuracy is in percent (0 to 100).
    images_per_second: images of all ranks over the time of the evaluation.
    counts: correct images, labels and predictions of each class, int64 3 K.
    logits, labels: float32 N K and int64 N, in the order of the split, on the CPU of every rank; None unless kept.
    """

    metrics: dict[str, float]
    num_images: int
    images_per_second: float
    counts: np.ndarray
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None

    def to_dict(self) -> dict[str, float]:
        """Return all numbers by name, as in `metrics.jsonl` and in the JSON file of a validation."""
        means = class_means(self.counts)
        return {**self.metrics, **means, "num_images": self.num_images, "images_per_second": self.images_per_second}


def evaluate(
    model: nn.Module,
    batches: Iterator[DeviceBatch],
    *,
    num_batches: int,
    world: World,
    precision: Precision,
    stop_requested: Callable[[], bool] = lambda: False,
    on_round: Callable[[], object] = lambda: None,
    keep_logits: bool = False,
) -> Evaluation | None:
    """Evaluate a model on this rank's batches of a split, and sum over all ranks.

    `num_batches` counts the batches of the whole split. `batches` yields the batches numbered rank, rank + size, ...;
    some ranks may have one batch fewer. `on_round` is called after each round of one batch a rank. The mode of the
    model (training or evaluation) is restored. `keep_logits` adds the logits and labels of all images to the result. A
    single process waits for its GPU only at the end. Several ranks also agree on a stop before each round.

    Returns None if any rank was asked to stop. Raises DataError on all ranks after the last batch if images were
    unreadable; the message lists the unreadable images of all batches.
    """
    images = 0
    unreadable: list[tuple[int, str]] = []
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    sums = torch.zeros(len(METRICS), num_batches, dtype=torch.float64, device=world.device)
    counts = torch.zeros(3, 1, dtype=torch.int64, device=world.device)
    was_training = model.training
    model.eval()
    started = time.monotonic()
    try:
        for _ in range(math.ceil(num_batches / world.size)):
            if world.any(stop_requested()):
                return None
            batch = next(batches, None)
            if batch is not None:
                with torch.inference_mode(), precision.autocast(world.device):
                    logits = model(batch.images)
                counts = counts + count_classes(logits, batch.labels)
                found = [metric(logits, batch.labels).double() for metric in METRICS.values()]
                sums[:, batch.step] = torch.stack(found)
                if keep_logits:
                    kept[batch.step] = logits.float(), batch.labels
                images += len(batch.labels)
                unreadable += batch.unreadable
            on_round()
    finally:
        model.train(was_training)
    images, num_unreadable = world.sum_(torch.tensor([images, len(unreadable)], device=world.device)).tolist()
    if num_unreadable:
        raise _unreadable_error([image for own in world.gather(unreadable) for image in own])
    num_classes = max(world.gather(counts.shape[1]))  # A rank without a batch does not know the number.
    seconds = time.monotonic() - started
    totals = [math.fsum(by_batch) for by_batch in world.sum_(sums).tolist()]
    return Evaluation(
        metrics={name: total / images for name, total in zip(METRICS, totals, strict=True)},
        num_images=images,
        images_per_second=images / seconds,
        counts=world.sum_(counts + counts.new_zeros(3, num_classes)).cpu().numpy(),
        **(_gather_logits(kept, world) if keep_logits else {}),
    )


def _gather_logits(kept: dict[int, tuple[Tensor, Tensor]], world: World) -> dict[str, np.ndarray]:
    """Return the logits and labels of all batches of all ranks, in the order of the split."""
    own = {step: (logits.cpu().numpy(), labels.cpu().numpy()) for step, (logits, labels) in kept.items()}
    batches = {step: batch for part in world.gather(own) for step, batch in part.items()}
    logits, labels = zip(*(batches[step] for step in sorted(batches)), strict=True)
    return {"logits": np.concatenate(logits), "labels": np.concatenate(labels)}


def _unreadable_error(unreadable: list[tuple[int, str]]) -> DataError:
    """Return the error that every rank raises. The message lists the images in the order of the split."""
    messages = [message for _, message in sorted(unreadable)]
    heading = f"{len(messages)} images of the validation split cannot be used:"
    lines = messages if len(messages) == 1 else [heading, *listed(messages, _MAX_LISTED)]
    error = DataError("\n  ".join(lines))
    error.is_shared = True
    return error


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return the number of images with the label among the k highest logits (int64 scalar, on the device).

    `logits` is N K, `labels` N (int64). If logits are equal, the lower class ranks first on every device; the order of
    `torch.topk` is undefined there. With at most k classes every image is correct, but not with a NaN logit.
    """
    own = logits.gather(1, labels[:, None])  # N 1
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    # Comparisons with NaN are false, so a NaN label would rank first. Rows with NaN get the last position.
    position = torch.where(logits.isnan().any(1), torch.iinfo(torch.int64).max, ahead.sum(1))
    return (position < k).sum()


# Each function maps logits (N K) and labels (N) to the sum of the metric over the N images, a scalar on the device.
# Percentages are sums of 0 and 100, whole numbers that float64 holds exactly. The loss is cross-entropy without
# smoothing; a logit that is not finite makes the loss NaN or infinite.
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top1": lambda logits, labels: 100 * topk_correct(logits, labels, 1),
    "top5": lambda logits, labels: 100 * topk_correct(logits, labels, 5),
    "loss": lambda logits, labels: F.cross_entropy(logits.double(), labels, reduction="sum"),
}


def count_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the correct images, labels and predictions of each class (int64 3 K) for logits N K and labels N.

    The prediction is the first maximum. Logits with a NaN predict no class. Nothing waits for the device.
    """
    counts = labels.new_zeros(3, logits.shape[1])
    predictions, valid = logits.argmax(1), (~logits.isnan().any(1)).long()
    counts[0].scatter_add_(0, labels, valid * (predictions == labels))
    counts[1].scatter_add_(0, labels, torch.ones_like(labels))
    counts[2].scatter_add_(0, predictions, valid)
    return counts
