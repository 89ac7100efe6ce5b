"""Names of tensors: the prefixes of wrappers and of this project's checkpoints."""

import re
from collections.abc import Mapping
from typing import TypeVar

from seresnext.errors import CheckpointError, printable

# Prefixes from DistributedDataParallel, DataParallel and timm's EMA (`module.`), and from torch.compile (`_orig_mod.`).
_WRAPPERS = re.compile(r"(module\.|_orig_mod\.)*")

# The tensors of this project's checkpoints that are weights of a model, the preferred prefix first.
PARTS = ("ema.", "model.")

MOST_TENSORS = 40_000  # No file of weights has more tensors. A checkpoint of SE-ResNeXt-101 has 2,000.
MOST_DIMENSIONS = 5  # of a tensor; weights have at most 4

T = TypeVar("T")


def model_tensors(tensors: Mapping[str, T], source: str) -> dict[str, T]:
    """Return the weights of a model, under the names of the bare model.

    Prefixes of wrappers are removed. From a checkpoint of this project the EMA weights are taken if there are any,
    otherwise the model's. Raise CheckpointError if two tensors of the file `source` get one name.
    """
    tensors = without_wrappers(tensors, source)
    for part in PARTS:
        found = {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        if found:
            return without_wrappers(found, source)
    return tensors


def without_wrappers(tensors: Mapping[str, T], source: str) -> dict[str, T]:
    """Return the tensors without prefixes of wrappers: `module._orig_mod.last_linear.bias` is `last_linear.bias`."""
    plain: dict[str, T] = {}
    for name, tensor in tensors.items():
        bare = _WRAPPERS.sub("", name, count=1)
        if bare in plain:
            raise CheckpointError(f"{source} has the tensor {printable(bare)} twice; give a file of one model")
        plain[bare] = tensor
    return plain
