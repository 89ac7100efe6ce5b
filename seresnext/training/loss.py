"""The losses. Each is called with logits (N K) and labels (N) or soft targets (N K), and returns one number.

A loss computes in float32 or float64, also after a forward pass in half precision, where exponentials and their sum
overflow. Label smoothing mixes every target with the uniform distribution (Szegedy et al. 2016, section 7).

To add a loss, write its class, enter the class in `LOSSES`, and add the name to the recipe's `LossSection`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from seresnext.recipe.schema import LossSection

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the softmax of the logits, averaged over images."""

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_in_full_precision(logits), targets, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """One yes/no question for each class: binary cross-entropy, summed over classes and averaged over images.

    Wightman et al. 2021, "ResNet strikes back" (arXiv:2110.00476), section 3. With `target_threshold`, targets above
    the threshold become 1 and all others 0: both classes of a mixed image are present, not each in part.
    """

    label_smoothing: float = 0.0
    target_threshold: float | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = _in_full_precision(logits)
        num_classes = logits.shape[1]
        if targets.ndim == 1:
            targets = F.one_hot(targets, num_classes)
        targets = targets.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def _in_full_precision(logits: Tensor) -> Tensor:
    return logits if logits.itemsize > 4 else logits.float()


LOSSES: dict[str, Callable[[LossSection], Loss]] = {
    "cross_entropy": lambda section: CrossEntropy(section.label_smoothing),
    "bce": lambda section: BinaryCrossEntropy(section.label_smoothing, section.target_threshold),
}
"""The builders by the recipe's `loss.name`."""


def build_loss(section: LossSection) -> Loss:
    """Build the loss of a recipe."""
    return LOSSES[section.name](section)
