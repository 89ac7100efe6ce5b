"""The mean of the weights of checkpoints of one recipe, which is often a little better than each checkpoint.

Sums are in float64. Counters come from the newest checkpoint. The file has weights only: `validate`, `predict` and
`model.weights` take the file, and a run cannot resume from the file.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata, check_values
from seresnext.errors import CheckpointError, UsageError
from seresnext.models import find_weights, open_weights
from seresnext.recipe import diff, recipe_hash, to_values
from seresnext.run.resume import AVERAGED, is_allowed


def average(paths: Sequence[Path], weights: str | None) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    """Return the mean weights of all checkpoints as `model.*`, and the metadata of the newest checkpoint.

    Raises CheckpointError unless all checkpoints have one recipe and the same classes and tensors.
    """
    first = newest = _read(paths[0], weights)
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in first[0].items()}
    for path in paths:
        tensors, metadata = found = first if path is paths[0] else _read(path, weights)
        changes = [
            line for line in diff(first[1].recipe, metadata.recipe) if not is_allowed(line.partition(":")[0], ())
        ]
        if metadata.dataset["classes"] != first[1].dataset["classes"]:
            changes.append("the classes differ")
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: sums[name].shape for name in sums}:
            changes.append("the tensors differ")
        if changes:
            listing = "\n  ".join(changes)
            raise CheckpointError(f"{path} cannot be averaged with {paths[0]}; give checkpoints of a run:\n  {listing}")
        if metadata.step >= newest[1].step:
            newest = found
        for name, tensor in tensors.items():
            sums[name] += tensor
    tensors, metadata = newest
    means = {
        f"model.{name}": (sums[name] / len(paths)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    recipe = {**metadata.recipe, "ema": None, "evaluation": {**metadata.recipe["evaluation"], "weights": "model"}}
    return means, replace(metadata, recipe=recipe, recipe_hash=recipe_hash(recipe), best=None, progress={})


def _read(path: Path, weights: str | None) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    """Return the weights of a checkpoint and the metadata. Raise CheckpointError or UsageError."""
    loaded = open_weights(path, weights)
    if loaded.metadata is None or loaded.recipe is None:
        raise CheckpointError(f"{loaded.source} is a file of weights without a recipe; give checkpoints of one recipe")
    check_values(loaded.tensors, loaded.source)
    return loaded.tensors, replace(loaded.metadata, recipe=to_values(loaded.recipe))


def average_checkpoints(arguments: Namespace) -> None:
    """Write the mean of checkpoints to a new file. `arguments` come from the command line."""
    paths, output = [find_weights(path) for path in arguments.checkpoints], arguments.output
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise UsageError("too few checkpoints, or one twice; give two checkpoints or more, each once")
    if output.suffix != ".safetensors" or output.exists():
        raise UsageError(f"--output {output}: the file exists or has another ending; give a new .safetensors file")
    tensors, metadata = average(paths, None if arguments.weights == "auto" else arguments.weights)
    store.write(output, tensors, {**metadata.to_metadata(), AVERAGED: json.dumps([path.name for path in paths])})
    print(f"{output}: the mean of {len(paths)} checkpoints, the newest of step {metadata.step}")
