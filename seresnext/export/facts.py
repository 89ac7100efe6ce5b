"""The training behind weights, from the recipe and the metadata in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.models import LoadedWeights, create_model
from seresnext.models.index import describe_model
from seresnext.recipe.schema import Recipe

_IMAGENET = (1_281_167, 1000)  # training images and classes
_IMAGENET_ID = "imagenet-1k"  # on the Hub


def describe_training(loaded: LoadedWeights, file_size: int) -> dict[str, object]:
    """Return the facts of a model under the names of the model index, and further settings of the run.

    The result is empty for a file without a recipe.
    """
    recipe, metadata = loaded.recipe, loaded.metadata
    if recipe is None or metadata is None:
        return {}
    num_images, global_size = metadata.dataset["num_images"], recipe.batch.global_size
    training = {
        "File Size": file_size,
        "Training Techniques": _techniques(recipe),
        "Training Data": [f"{num_images:,} images of {recipe.model.num_classes:,} classes"],
        "Training Resources": _resources(metadata.environment),
        "LR": recipe.optimizer.lr,
        "Epochs": round(metadata.step / max(1, num_images // global_size), 2),
        "Dropout": recipe.model.drop_rate,
        "Momentum": recipe.optimizer.momentum if recipe.optimizer.name == "sgd" else None,
        "Batch Size": global_size,
    }
    name, num_classes, in_channels = loaded.identify()
    with torch.device("meta"):
        model = create_model(name, num_classes, in_channels)
    return {
        **describe_model(name, model, loaded.preprocessing, training),
        "Steps": metadata.step,
        "Planned length": recipe.length,
        "Schedule": f"{recipe.schedule.name}, warmup {recipe.schedule.warmup}",
        "Seed": recipe.runtime.seed,
    }


def hub_dataset(metadata: CheckpointMetadata | None) -> str | None:
    """Return the name of the training data on the Hub: ImageNet, by the numbers of images and classes, or None."""
    if metadata is None:
        return None
    sizes = (metadata.dataset["num_images"], len(metadata.dataset["classes"]))
    return _IMAGENET_ID if sizes == _IMAGENET else None


def _techniques(recipe: Recipe) -> list[str]:
    optimizer, policy = recipe.optimizer, recipe.augment.policy
    is_used = {
        "SGD with Momentum" if optimizer.momentum else "SGD": optimizer.name == "sgd",
        "Nesterov Momentum": optimizer.name == "sgd" and optimizer.nesterov,
        "AdamW": optimizer.name == "adamw",
        "Weight Decay": optimizer.weight_decay,
        "Gradient Clipping": optimizer.clip_norm,
        "Label Smoothing": recipe.loss.label_smoothing,
        "Mixup": recipe.mix.mixup,
        "CutMix": recipe.mix.cutmix,
        "RandAugment": policy and policy.name == "randaugment",
        "TrivialAugment": policy and policy.name == "trivialaugment",
        "Color Jitter": recipe.augment.color_jitter,
        "Random Erasing": recipe.augment.erasing,
        "Stochastic Depth": recipe.model.drop_path_rate,
        "Exponential Moving Average": recipe.ema,
        "Fine-Tuning": recipe.model.weights,
    }
    return [name for name, value in is_used.items() if value]


def _resources(environment: Mapping[str, Any]) -> str | None:
    """Return the number of processes and the device, None if the checkpoint does not record both."""
    size, gpu, cpu = (environment.get(key) for key in ("world_size", "gpu", "cpu"))
    device = gpu or cpu
    if not isinstance(size, int) or not isinstance(device, str):
        return None
    return f"{size}x {gpu}" if gpu else f"{size} process{'es' if size > 1 else ''} on {cpu}"
