"""The mean of the weights of checkpoints of one recipe, which is often a little better than each checkpoint.

Sums are in float64. Counters come from the newest checkpoint. The file has weights only: `validate`, `predict` and
`model.weights` take the file, and a run cannot resume from the file.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from seresnext.checkpoint import file_format, store
from seresnext.checkpoint.contents import CheckpointMetadata, check_values
from seresnext.errors import CheckpointError, Failure, UsageError
from seresnext.models import LoadedWeights, find_weights, open_weights
from seresnext.recipe.load import to_values
from seresnext.recipe.show import diff, recipe_hash
from seresnext.run.resume import AVERAGED, FREE_KEYS


def read_checkpoint(path: Path, weights: str | None) -> tuple[LoadedWeights, CheckpointMetadata]:
    """Return the weights of a checkpoint and the metadata. Raise CheckpointError or UsageError."""
    loaded = open_weights(path, weights)
    if loaded.metadata is None or loaded.recipe is None:
        raise CheckpointError(
            f"{loaded.source} is a bare file of weights without a recipe, not a checkpoint of this project; give "
            "checkpoints of one recipe"
        )
    check_values(loaded.tensors, loaded.source)
    return loaded, replace(loaded.metadata, recipe=to_values(loaded.recipe))


def refuse_others(first: CheckpointMetadata, other: CheckpointMetadata, source: Path, against: Path) -> None:
    """Raise CheckpointError unless both checkpoints have one recipe and the same classes."""
    changes = [line for line in diff(first.recipe, other.recipe) if line.partition(":")[0] not in FREE_KEYS]
    if first.dataset["classes"] != other.dataset["classes"]:
        changes.append("the classes differ")
    if changes:
        listing = "\n  ".join(changes)
        raise CheckpointError(
            f"{source} cannot be averaged with {against}: the recipes differ; give checkpoints of one run:\n  {listing}"
        )


def average(paths: Sequence[Path], weights: str | None) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    """Return the mean weights of all checkpoints as `model.*`, and the metadata of the newest checkpoint."""
    sums: dict[str, Tensor] = {}
    newest: dict[str, Tensor] = {}
    first: CheckpointMetadata | None = None
    metadata: CheckpointMetadata | None = None
    for path in paths:
        loaded, found = read_checkpoint(path, weights)
        tensors = loaded.tensors
        if first is None or metadata is None:
            first = metadata = found
            sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in tensors.items()}
        refuse_others(first, found, path, paths[0])
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: sums[name].shape for name in sums}:
            raise CheckpointError(
                f"{path} cannot be averaged with {paths[0]}, the tensors differ; give checkpoints of one run"
            )
        if found.step >= metadata.step:
            metadata, newest = found, tensors
        for name, tensor in tensors.items():
            sums[name] += tensor
    assert metadata is not None
    means = {
        f"model.{name}": (sums[name] / len(paths)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in newest.items()
    }
    recipe = {**metadata.recipe, "ema": None, "evaluation": {**metadata.recipe["evaluation"], "weights": "model"}}
    return means, replace(metadata, recipe=recipe, recipe_hash=recipe_hash(recipe), best=None, progress={})


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a new file, whole or not at all. Raises Failure."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        file_format.write_synced(temporary, *file_format.header(tensors, metadata))
        temporary.replace(path)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def average_checkpoints(arguments: Namespace) -> None:
    """Write the mean of checkpoints to a new file. `arguments` come from the command line."""
    paths, output = [find_weights(path) for path in arguments.checkpoints], arguments.output
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise UsageError("too few checkpoints, or one twice; give two checkpoints or more, each once")
    if output.suffix != ".safetensors" or output.exists():
        raise UsageError(
            f"--output {output}: the file exists or has another ending; give a new file with the ending .safetensors"
        )
    if store.is_name_of_run(output):  # A run would resume from such a file in the run folder.
        raise UsageError(f"--output {output}: this name is reserved for the checkpoints of a run; give another name")
    tensors, metadata = average(paths, None if arguments.weights == "auto" else arguments.weights)
    sources = json.dumps([path.name for path in paths])
    write(output, tensors, {**metadata.to_metadata(), AVERAGED: sources})
    print(f"{output}: the mean of {len(paths)} checkpoints, the newest of step {metadata.step}")
