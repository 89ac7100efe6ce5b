"""The losses. Each is called with logits (N K) and labels (N) or soft targets (N K), and returns one number.

A loss computes in float32 or float64, also after a forward pass in half precision, where exponentials and their sum
overflow. Label smoothing mixes every target with the uniform distribution (Szegedy et al. 2016, section 7).

Class weights have a mean of 1 over the training images, and a weighted loss divides by the number of images. torch
divides by the sum of the weights of a batch instead: an image would then weigh more next to images of frequent classes
than next to images of rare classes, and the gradient of a global batch would depend on the size of the micro-batches.

To add a loss, write its class, enter the class in `LOSSES`, and add the name to the recipe's `LossSection`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seresnext.data.readers import Reader
from seresnext.recipe.schema import LossSection, Recipe

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the softmax of the logits, averaged over images.

    With `weights` (K), a target t of an image adds -sum_k weights_k t_k log p_k, as in torch, also for soft targets and
    for the share of each class that comes from label smoothing.
    """

    label_smoothing: float = 0.0
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits, smoothing = _in_full_precision(logits), self.label_smoothing
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        weights = self.weights.to(logits)
        total = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)
        return total / len(logits)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """One yes/no question for each class: binary cross-entropy, summed over classes and averaged over images.

    Wightman et al. 2021, "ResNet strikes back" (arXiv:2110.00476), section 3. With `target_threshold`, targets above
    the threshold become 1 and all others 0: both classes of a mixed image are present, not each in part.

    With `weights` (K), all K terms of an image have the weight of its class (Cui et al. 2019, arXiv:1901.05555, section
    4.1). A mixed image has the mean weight of its classes, by their shares before smoothing and threshold.
    """

    label_smoothing: float = 0.0
    target_threshold: float | None = None
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = _in_full_precision(logits)
        num_classes = logits.shape[1]
        if targets.ndim == 1:
            targets = F.one_hot(targets, num_classes)
        weights = None if self.weights is None else targets.to(logits.dtype) @ self.weights.to(logits)[:, None]
        targets = targets.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum") / len(logits)


def _in_full_precision(logits: Tensor) -> Tensor:
    return logits if logits.itemsize > 4 else logits.float()


LOSSES: dict[str, Callable[[LossSection, Tensor | None], Loss]] = {
    "cross_entropy": lambda section, weights: CrossEntropy(section.label_smoothing, weights),
    "bce": lambda section, weights: BinaryCrossEntropy(section.label_smoothing, section.target_threshold, weights),
}
"""The builders by the recipe's `loss.name`."""


def build_loss(section: LossSection, weights: Tensor | None = None) -> Loss:
    """Build the loss of a recipe. `weights` (K) are the weights of the classes."""
    return LOSSES[section.name](section, weights)


def build_class_weights(recipe: Recipe, train: Reader, device: torch.device) -> Tensor | None:
    """Return the weight of each class (float64 K), with a mean of 1 over the images to train on. None: no weights.

    `balanced` is N / (K n_k) for n_k of N training images in class k, as in scikit-learn's `compute_class_weight`. K
    counts the classes with images. A class that the recipe does not name has the weight 1 before the division by the
    mean. With balanced sampling, the mean is over the classes.
    """
    given, counts = recipe.loss.class_weights, np.bincount(train.labels, minlength=len(train.classes))
    if given is None:
        return None
    if given == "balanced":
        weights = len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    else:
        weights = np.array([given.get(name, 1.0) for name in train.classes])
        weights /= np.average(weights, weights=counts > 0 if recipe.data.sampling == "balanced" else counts)
    return torch.from_numpy(weights).to(device)
