"""The size of a network in three numbers: parameters, multiply-adds and bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of a state dict, with BatchNorm's statistics."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def count_multiply_adds(model: nn.Module, in_channels: int = 3, image_size: int = 224) -> int:
    """Return the multiply-adds of convolutions and linear layers for one square image.

    This is the convention of the ResNet and SENet papers, which say FLOPs: without BatchNorm, activations and pooling.
    The model runs in evaluation mode on its device. On `torch.device("meta")` the run costs nothing.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        # Each number of the output is a dot product with the weights of one channel.
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output.numel() * module.weight[0].numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    was_training = model.training
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_channels, image_size, image_size, device=device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return total
