"""The table of the models that `seresnext models` prints."""

import torch

from seresnext.models.counting import count_bytes, count_multiply_adds, count_parameters
from seresnext.models.registry import MODELS, create_model


def print_models() -> None:
    """Print a line for each model: counts on the meta device, then the figures of the published weights."""
    print(
        f"{'model':<25} {'parameters':>10} {'multiply-adds':>13} {'bytes of weights':>16} {'top-1':>6} {'top-5':>6}"
        "  published weights (bytes)"
    )
    for name, row in MODELS.items():
        with torch.device("meta"):
            model = create_model(name)
        print(
            f"{name:<25} {count_parameters(model):>10,} {count_multiply_adds(model) / 1e9:>11.2f} G "
            f"{count_bytes(model):>16,} {row.top1:>6.2f} {row.top5:>6.2f}  {row.weights_file}"
            + (f" ({row.weights_bytes:,})" if row.weights_bytes else "")
        )
    print(
        "\nMultiply-adds: convolutions and linear layers, one image of 224x224. Bytes of weights: float32, with the\n"
        "statistics of BatchNorm. Accuracies: as published, percent of ImageNet's validation set, one centre crop of\n"
        "224x224, and of 288x288 for seresnext50_32x4d."
    )
