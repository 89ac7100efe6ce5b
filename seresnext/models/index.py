"""The facts of models: multiply-adds, the table of `seresnext models`, and the model index.

The format of the index is described in https://github.com/paperswithcode/model-index. timm's pages have the same facts:
https://github.com/huggingface/pytorch-image-models/blob/main/docs/models/.templates/models/legacy-se-resnext.md.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seresnext.models.preprocessing import Preprocessing, published_preprocessing
from seresnext.models.registry import MODELS, create_model
from seresnext.models.senet import SENet

_PAPER = "https://paperswithcode.com/paper/squeeze-and-excitation-networks"
_COLLECTION = {"Name": "Legacy SE ResNeXt", "Paper": {"Title": "Squeeze-and-Excitation Networks", "URL": _PAPER}}
_LAYERS = [
    "1x1 Convolution", "Batch Normalization", "Convolution", "Global Average Pooling", "Grouped Convolution",
    "Max Pooling", "ReLU", "ResNeXt Block", "Residual Connection", "Softmax", "Squeeze-and-Excitation Block",
]  # fmt: skip
_TIMM = "https://github.com/rwightman/pytorch-image-models/blob/d8e69206be253892b2956341fea09fdebfaae4e3"


# The keys in the order of timm's pages, and this project's own key.
_KEYS = (
    "FLOPs", "Multiply-Adds", "Parameters", "File Size", "Architecture", "Tasks", "Training Techniques",
    "Training Data", "Training Resources", "ID", "LR", "Epochs", "Layers", "Dropout", "Crop Pct", "Momentum",
    "Batch Size", "Image Size", "Interpolation",
)  # fmt: skip
# timm's page gives these for all three models.
_PUBLISHED = {
    "Training Techniques": ["Label Smoothing", "SGD with Momentum", "Weight Decay"],
    "Training Data": ["ImageNet"],
    "Training Resources": "8x NVIDIA Titan X GPUs",
    "LR": 0.6,
    "Epochs": 100,
    "Dropout": 0.2,
    "Momentum": 0.9,
    "Batch Size": 1024,
}
# The published FLOPs, whose convention is not known, and the line of the model in timm's senet.py.
_PUBLISHED_ROWS = {
    "legacy_seresnext26_32x4d": (3_187_342_304, 448),
    "legacy_seresnext50_32x4d": (5_459_954_352, 455),
    "legacy_seresnext101_32x4d": (10_287_698_672, 462),
}


def count_multiply_adds(model: nn.Module, in_channels: int = 3, image_size: int = 224) -> int:
    """Return the multiply-adds of convolutions and linear layers for one square image.

    This is the convention of the ResNet and SENet papers, which say FLOPs: without BatchNorm, activations and pooling.
    The model runs in evaluation mode on its device. On `torch.device("meta")` the run costs nothing.
    """
    was_training, device = model.training, next(model.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, in_channels, image_size, image_size, device=device))
    model.train(was_training)
    return counter.get_total_flops() // 2


def print_models() -> None:
    """Print a line for each model: its size, then the figures of the published weights."""
    print(
        f"{'model':<25} {'parameters':>10} {'multiply-adds':>13} {'top-1':>6} {'top-5':>6}  published weights (bytes)"
    )
    for name, row in MODELS.items():
        with torch.device("meta"):
            model = create_model(name)
        print(
            f"{name:<25} {_parameters(model):>10,} {count_multiply_adds(model) / 1e9:>11.2f} G "
            f"{row.top1:>6.2f} {row.top5:>6.2f}  {row.weights_urls[-1].rpartition('/')[2]}"
            + (f" ({row.weights_bytes:,})" if row.weights_bytes else "")
        )
    print(
        "\nMultiply-adds: convolutions and linear layers, one image of 224x224. Accuracies: as published, percent of\n"
        "ImageNet's validation set, one centre crop of 224x224, and of 288x288 for seresnext50_32x4d."
    )


def print_index() -> None:
    """Print the published models as YAML."""
    models = [_published(name, *facts) for name, facts in _PUBLISHED_ROWS.items()]
    print(yaml.safe_dump({"Collections": [_COLLECTION], "Models": models}, sort_keys=False), end="")


def describe_model(name: str, model: SENet, how: Preprocessing, training: Mapping[str, object]) -> dict[str, object]:
    """Return the entry `Metadata` of a model: facts of the network and of `training`. None means not known.

    The multiply-adds are for one image of the size in `how`. `model` may be on the device meta.
    """
    found = {
        **training,
        "Multiply-Adds": count_multiply_adds(model, model.in_channels, how.image_size),
        "Parameters": _parameters(model),
        "Architecture": list(_LAYERS),
        "Tasks": ["Image Classification"],
        "ID": name,
        "Layers": 2 + 3 * sum(MODELS[name].blocks),
        "Crop Pct": f"{how.crop_pct:g}",
        "Image Size": str(how.image_size),
        "Interpolation": how.interpolation,
    }
    return {key: found[key] for key in _KEYS if found.get(key) is not None}


def _parameters(model: SENet) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _published(name: str, flops: int, line: int) -> dict[str, object]:
    row = MODELS[name]
    with torch.device("meta"):
        model = create_model(name)
    training = {**deepcopy(_PUBLISHED), "FLOPs": flops, "File Size": row.weights_bytes}
    metrics = {"Top 1 Accuracy": f"{row.top1:.2f}%", "Top 5 Accuracy": f"{row.top5:.2f}%"}
    return {
        "Name": name,
        "In Collection": _COLLECTION["Name"],
        "Metadata": describe_model(name, model, published_preprocessing(name), training),
        "Code": f"{_TIMM}/timm/models/senet.py#L{line}",
        "Weights": row.weights_urls[-1],
        "Results": [{"Task": "Image Classification", "Dataset": "ImageNet", "Metrics": metrics}],
    }
