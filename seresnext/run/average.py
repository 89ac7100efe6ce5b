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

from seresnext import weights as weight_files
from seresnext.checkpoint import file_format, store
from seresnext.checkpoint.contents import CheckpointMetadata, check_values, select
from seresnext.errors import CheckpointError, Failure, RecipeError, UsageError
from seresnext.models import find_weights
from seresnext.recipe.load import recipe_from_values, to_values
from seresnext.recipe.show import diff, recipe_hash
from seresnext.run.resume import AVERAGED, FREE_KEYS


def read_weights(path: Path, weights: str) -> tuple[dict[str, Tensor], str, CheckpointMetadata]:
    """Return the weights of a checkpoint, their kind, and the facts. Raises CheckpointError or UsageError."""
    tensors, metadata = weight_files.read_weights(path)
    if not metadata:
        raise CheckpointError(
            f"{path} is a bare file of weights without a recipe, not a checkpoint of this project; give checkpoints of "
            "one recipe"
        )
    facts = CheckpointMetadata.from_metadata(metadata, str(path))
    try:
        facts = replace(facts, recipe=to_values(recipe_from_values(facts.recipe, str(path))))
    except RecipeError as error:
        raise CheckpointError(f"{path} has a recipe that cannot be used: {error}") from None
    chosen = facts.recipe["evaluation"]["weights"] if weights == "auto" else weights
    found = select(tensors, chosen)
    if not found and weights == "auto":
        raise CheckpointError(f"{path} has no weights in it")
    if not found:
        raise UsageError(f"--weights {chosen}: {path} has no such weights; the run had no average (ema)")
    check_values(found, str(path))
    return found, chosen, facts


def refuse_others(first: CheckpointMetadata, other: CheckpointMetadata, source: Path, against: Path) -> None:
    """Raise CheckpointError unless both come from one recipe and one set of classes."""
    changes = [line for line in diff(first.recipe, other.recipe) if line.partition(":")[0] not in FREE_KEYS]
    if first.dataset["classes"] != other.dataset["classes"]:
        changes.append("the classes are others")
    if changes:
        listing = "\n  ".join(changes)
        raise CheckpointError(f"{source} cannot be averaged with {against}, its recipe is another:\n  {listing}")


def average(paths: Sequence[Path], weights: str) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    """The mean weights of all checkpoints, and the facts of the newest, for a file that has nothing but `model`."""
    sums: dict[str, Tensor] = {}
    newest: dict[str, Tensor] = {}
    first: CheckpointMetadata | None = None
    facts: CheckpointMetadata | None = None
    for path in paths:
        tensors, weights, found = read_weights(path, weights)
        if first is None or facts is None:
            first = facts = found
            sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in tensors.items()}
        refuse_others(first, found, path, paths[0])
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: sums[name].shape for name in sums}:
            raise CheckpointError(f"{path} cannot be averaged with {paths[0]}, it has other tensors")
        if found.step >= facts.step:
            facts, newest = found, tensors
        for name, tensor in tensors.items():
            sums[name] += tensor
    assert facts is not None
    means = {
        f"model.{name}": (sums[name] / len(paths)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in newest.items()
    }
    recipe = {**facts.recipe, "ema": None, "evaluation": {**facts.recipe["evaluation"], "weights": "model"}}
    return means, replace(facts, recipe=recipe, recipe_hash=recipe_hash(recipe), best=None, progress={})


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
    """Write the mean of checkpoints to a new file. `arguments` are those of the command."""
    paths, output = [find_weights(path) for path in arguments.checkpoints], arguments.output
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise UsageError("give two checkpoints or more, each once")
    if output.suffix != ".safetensors" or output.exists():
        raise UsageError(f"--output {output}: must be a new file with the ending .safetensors")
    if store.is_name_of_run(output):  # A run with this file in the run folder would resume from the file.
        raise UsageError(f"--output {output}: this name is reserved for the checkpoints of a run; give another name")
    tensors, facts = average(paths, arguments.weights)
    sources = json.dumps([path.name for path in paths])
    write(output, tensors, {**facts.to_metadata(), AVERAGED: sources})
    print(f"{output}: the mean of {len(paths)} checkpoints, the newest of step {facts.step}")
