"""The metrics of an evaluation, each a sum over the images of a batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


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
