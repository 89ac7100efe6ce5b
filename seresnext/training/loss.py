"""The losses that training can minimise. Each is called with logits (N K) and labels (N) or soft targets (N K).

They compute in float32 at least, whatever precision the forward pass used: exponentials and their sum overflow in half
precision. Smoothing mixes every target with the uniform distribution (Szegedy et al. 2016, section 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from seresnext.recipe.schema import LossSection


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the softmax of the logits, averaged over images."""

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, one number."""
        return F.cross_entropy(_precise(logits), targets, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Every class asked for by itself: binary cross-entropy, summed over classes and averaged over images.

    Wightman et al. 2021, "ResNet strikes back" (arXiv:2110.00476), section 3. Of two mixed images both are then there,
    rather than each in part: with `target_threshold`, targets above it become 1 and all others 0.
    """

    label_smoothing: float = 0.0
    target_threshold: float | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, one number."""
        logits = _precise(logits)
        num_classes = logits.shape[1]
        if targets.ndim == 1:
            targets = F.one_hot(targets, num_classes)
        targets = targets.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


Loss = CrossEntropy | BinaryCrossEntropy


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.itemsize > 4 else logits.float()


def build_loss(section: LossSection) -> Loss:
    """What training minimises."""
    if section.name == "bce":
        return BinaryCrossEntropy(section.label_smoothing, section.target_threshold)
    return CrossEntropy(section.label_smoothing)
