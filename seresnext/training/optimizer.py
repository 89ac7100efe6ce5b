"""Which optimizer trains which parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seresnext.recipe.schema import OptimizerSection


def sgd(
    model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float, decay_norm_and_bias: bool
) -> torch.optim.SGD:
    """SGD with momentum over all trainable parameters of a model.

    With `decay_norm_and_bias` False, vectors (biases, and the gain and shift of BatchNorm) go without weight decay
    (Goyal et al. 2017, section 5.1; He et al. 2019, "Bag of Tricks", section 3.1).

    The fused kernel reads `found_inf`, a number on the device, and then changes nothing (`skip_if`). Its first step
    would leave momentum as it found it in memory, so there are zeros from the start; those give the same first step.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if decay_norm_and_bias or p.ndim > 1]
    spared = [p for p in trainable if not decay_norm_and_bias and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        [g for g in groups if g["params"]], lr=lr, momentum=momentum, nesterov=nesterov, fused=True
    )
    if momentum:
        for parameter in trainable:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def skip_if(optimizer: torch.optim.SGD, skip: Tensor) -> None:
    """Let the next step leave weights and momentum as they are, to the bit, if `skip` (float32) is 1 and not 0.

    Nothing waits for the number. It is the way in which torch.amp.GradScaler.step tells a fused optimizer.
    """
    optimizer.found_inf = skip  # pyright: ignore[reportAttributeAccessIssue]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step use this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def build_optimizer(model: nn.Module, section: OptimizerSection) -> torch.optim.SGD:
    """The optimizer of all parameters that are trained."""
    return sgd(
        model,
        lr=section.lr,
        momentum=section.momentum,
        nesterov=section.nesterov,
        weight_decay=section.weight_decay,
        decay_norm_and_bias=section.decay_norm_and_bias,
    )
