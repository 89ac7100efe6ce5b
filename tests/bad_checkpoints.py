"""Checkpoints with a right digest and any content, as an attacker can write them."""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.models import create_model
from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import recipe_hash
from seresnext.training.trainer import Progress


def model_weights(num_classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = create_model("seresnext26", num_classes)
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def metadata_values(images: Path, *settings: str, recipe: Path | str = "seresnext26") -> dict[str, Any]:
    """Return the metadata that a run of three classes writes, as plain values."""
    usual = ["model.num_classes=3", f"data.root={images}", "data.image_size=32", "data.workers=0", "ema=null"]
    usual += ["evaluation.weights=model", "runtime.precision=fp32"]
    values = to_values(load_recipe(recipe, [*usual, *settings]).recipe)
    classes = sorted(folder.name for folder in (images / "val").iterdir())
    return {
        "step": 8,
        "recipe": values,
        "recipe_hash": recipe_hash(values),
        "best": None,
        "history": [],
        "dataset": {"classes": classes, "num_images": 24, "fingerprint": "0" * 64},
        "environment": {},
        "progress": {name: value for name, value in asdict(Progress(step=8)).items() if name != "history"},
    }


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(values))
    for path, value in changes.items():
        *folders, last = path.split(".")
        place = result
        for folder in folders:
            place = place[folder]
        place[last] = value
    return result


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], **metadata: str) -> Path:
    """Write a checkpoint with the right digest. The texts of `metadata` replace the texts of `values`."""
    store.write(path, tensors, {**CheckpointMetadata(**values).to_metadata(), **metadata})
    return path
