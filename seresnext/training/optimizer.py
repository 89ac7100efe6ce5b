"""The optimizers, their weight decay, their state by parameter name, and the skip of a step.

To add an optimizer, write its builder, enter the builder in `OPTIMIZERS`, and add its name and keys to the recipe's
`OptimizerSection`. Every optimizer is fused: a fused kernel reads `found_inf` on the device and skips the step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from seresnext.recipe.schema import OptimizerSection

# Checkpoints use these names in place of torch's.
_SAVED_NAMES = {"momentum_buffer": "momentum"}
# torch counts the steps of each parameter. All counts are equal, and a checkpoint holds one. Stages that start to train
# later (`model.frozen_until`) have a second count.
_SHARED, _LATER = "step", "later_step"
# The stages from the classifier down. The rate of each is `layer_decay` times the rate of the one before.
_STAGES = ("last_linear", "layer4", "layer3", "layer2", "layer1", "layer0")


def build_optimizer(model: nn.Module, section: OptimizerSection, later: Sequence[str] = ()) -> Optimizer:
    """Build the optimizer of a recipe over all trainable parameters of a model.

    With `decay_norm_and_bias` False, vectors (biases, weights and biases of BatchNorm) have no weight decay (Goyal et
    al. 2017, section 5.1; He et al. 2019, "Bag of Tricks", section 3.1).

    `layer_decay` multiplies the rate for each stage between a parameter and the classifier (Clark et al. 2020,
    arXiv:2003.10555, appendix A; timm's `param_groups_layer_decay`). `head_lr` is the peak rate of the classifier. Both
    are a factor of the rate of the schedule, `rate_factor` of a group. Weight decay does not depend on either.

    `later` are the stages that start to train later, with their own `count` of steps.
    """
    groups: dict[tuple[bool, float, str], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_decayed, factor = section.decay_norm_and_bias or parameter.ndim > 1, _rate_factor(name, section)
            count = _LATER if name.partition(".")[0] in later else _SHARED
            decay = section.weight_decay if is_decayed else 0.0
            group = {"params": [], "weight_decay": decay, "rate_factor": factor, "count": count}
            groups.setdefault((not is_decayed, -factor, count), group)["params"].append(parameter)
    return OPTIMIZERS[section.name]([groups[key] for key in sorted(groups)], section)


def _rate_factor(name: str, section: OptimizerSection) -> float:
    """Return the rate of a parameter / the rate of the schedule."""
    stage = name.partition(".")[0]
    if stage == _STAGES[0] and section.head_lr is not None:
        return section.head_lr / section.lr
    return section.layer_decay ** _STAGES.index(stage) if section.layer_decay < 1 else 1.0


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
    """Return the live state as `<state>.<parameter>`, such as `exp_avg.layer0.conv1.weight`, and each count once.

    Empty for an optimizer without state. After a restore into these tensors, call `share_step_count`.
    """
    state = {}
    counts = {parameter: group["count"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            if key == _SHARED:
                state.setdefault(counts[parameter], tensor)
            else:
                state[f"{_SAVED_NAMES.get(key, key)}.{name}"] = tensor
    return state


def share_step_count(optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give all parameters the step counts of a restored `optimizer_state`."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state.get(parameter, {})
            if _SHARED in own:
                own[_SHARED].copy_(state[group["count"]])


def skip_if(optimizer: Optimizer, skip: Tensor) -> None:
    """Make the next step leave weights and state unchanged, to the bit, if `skip` (float32, on the device) is 1.

    The host does not wait for the number. torch.amp.GradScaler.step also passes `found_inf` to a fused optimizer.
    """
    optimizer.found_inf = skip  # pyright: ignore[reportAttributeAccessIssue]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the rate of the schedule for the next step. Each group has a factor of this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate_factor"]


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
