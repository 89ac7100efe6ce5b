"""The multiply-adds of a network, and the table of the models that `seresnext models` prints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seresnext.models.registry import MODELS, create_model


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


def print_models() -> None:
    """Print a line for each model: its size, then the figures of the published weights."""
    print(
        f"{'model':<25} {'parameters':>10} {'multiply-adds':>13} {'bytes of weights':>16} {'top-1':>6} {'top-5':>6}"
        "  published weights (bytes)"
    )
    for name, row in MODELS.items():
        with torch.device("meta"):
            num_bytes = sum(tensor.nbytes for tensor in create_model(name).state_dict().values())
        print(
            f"{name:<25} {row.params:>10,} {row.multiply_adds / 1e9:>11.2f} G "
            f"{num_bytes:>16,} {row.top1:>6.2f} {row.top5:>6.2f}  {row.weights_file}"
            + (f" ({row.weights_bytes:,})" if row.weights_bytes else "")
        )
    print(
        "\nMultiply-adds: convolutions and linear layers, one image of 224x224. Bytes of weights: float32, with the\n"
        "statistics of BatchNorm. Accuracies: as published, percent of ImageNet's validation set, one centre crop of\n"
        "224x224, and of 288x288 for seresnext50_32x4d."
    )
