"""The size of a network in three numbers: parameters, multiply-adds and bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Bytes of everything a state dict holds, BatchNorm's statistics included."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def count_multiply_adds(model: nn.Module, in_channels: int = 3, image_size: int = 224) -> int:
    """Multiplications (each with an addition) in the convolutions and linear layers for one square image.

    The convention of the ResNet and SENet papers, which call it FLOPs. BatchNorm, activations and pooling are left out.
    The model is run, in evaluation mode, on the device it is on; on `torch.device("meta")` that costs nothing.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        # Every output channel at every place is a dot product with the weights of that channel.
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
