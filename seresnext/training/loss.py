"""The loss that training minimises."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of logits (N K) against labels (N) or soft targets (N K), smoothed as in Szegedy et al. 2016.

    Smoothing mixes every target with the uniform distribution (section 7 of that paper). Computed in float32 at least,
    whatever precision the forward pass used: exponentials and their sum overflow in half precision.
    """
    return F.cross_entropy(logits if logits.itemsize > 4 else logits.float(), targets, label_smoothing=label_smoothing)
