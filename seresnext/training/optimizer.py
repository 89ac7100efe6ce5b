"""The optimizers, their weight decay, their state by parameter name, and the skip of a step.

To add an optimizer, write its builder, enter the builder in `OPTIMIZERS`, and add its name and keys to the recipe's
`OptimizerSection`. Every optimizer is fused: a fused kernel reads `found_inf` on the device and skips the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from seresnext.recipe.schema import OptimizerSection

# Checkpoints use these names in place of torch's.
_SAVED_NAMES = {"momentum_buffer": "momentum"}
# torch counts the steps of each parameter. All counts are equal, and a checkpoint holds one.
_SHARED = "step"


def build_optimizer(model: nn.Module, section: OptimizerSection) -> Optimizer:
    """Build the optimizer of a recipe over all trainable parameters of a model.

    With `decay_norm_and_bias` False, vectors (biases, weights and biases of BatchNorm) have no weight decay (Goyal et
    al. 2017, section 5.1; He et al. 2019, "Bag of Tricks", section 3.1).
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if section.decay_norm_and_bias or p.ndim > 1]
    others = [p for p in trainable if not section.decay_norm_and_bias and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": section.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return OPTIMIZERS[section.name]([group for group in groups if group["params"]], section)


def _sgd(groups: list[dict[str, Any]], section: OptimizerSection) -> Optimizer:
    """Build SGD. The momentum starts with zeros: the first step is then the same as torch's.

    torch would allocate the momentum in the first step, and leave the memory uninitialised if this step is skipped.
    """
    optimizer = SGD(groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov, fused=True)
    if section.momentum:
        for parameter in _parameters(optimizer):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _adamw(groups: list[dict[str, Any]], section: OptimizerSection) -> Optimizer:
    """Build AdamW (Loshchilov and Hutter 2019), with its state, so that a restore finds all tensors."""
    optimizer = AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, fused=True)
    for parameter in _parameters(optimizer):
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerSection], Optimizer]] = {"sgd": _sgd, "adamw": _adamw}
"""The builders by the recipe's `optimizer.name`. A builder makes the state of all parameters."""


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the live state as `<state>.<parameter>`, such as `exp_avg.layer0.conv1.weight`, and `step` once.

    Empty for an optimizer without state. After a restore into these tensors, call `share_step_count`.
    """
    state = {}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            if key == _SHARED:
                state.setdefault(key, tensor)
            else:
                state[f"{_SAVED_NAMES.get(key, key)}.{name}"] = tensor
    return state


def share_step_count(optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give all parameters the step count of a restored `optimizer_state`."""
    for own in optimizer.state.values():
        if _SHARED in own:
            own[_SHARED].copy_(state[_SHARED])


def skip_if(optimizer: Optimizer, skip: Tensor) -> None:
    """Make the next step leave weights and state unchanged, to the bit, if `skip` (float32, on the device) is 1.

    The host does not wait for the number. torch.amp.GradScaler.step also passes `found_inf` to a fused optimizer.
    """
    optimizer.found_inf = skip  # pyright: ignore[reportAttributeAccessIssue]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
