"""Names of tensors: what wrappers put in front of them, and how to show one that a stranger chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from seresnext.errors import CheckpointError

# What DistributedDataParallel, DataParallel and timm's EMA (`module.`), and torch.compile (`_orig_mod.`) add.
WRAPPERS = ("module.", "_orig_mod.")

# The parts of this project's checkpoints that are weights of a model, the preferred one first.
PARTS = ("ema.", "model.")

MOST_TENSORS = 40_000
"""More are in no file of weights; a checkpoint of SE-ResNeXt-101 has 2,000."""

T = TypeVar("T")


def model_tensors(tensors: Mapping[str, T], source: str) -> dict[str, T]:
    """The weights of a model under the names that the bare model gives them.

    Prefixes of wrappers are taken off. Of a checkpoint of this project, the EMA weights if there are any, else the
    model's. Raises CheckpointError if the file `source` has two tensors of one name then.
    """
    tensors = without_wrappers(tensors, source)
    for part in PARTS:
        found = {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        if found:
            return without_wrappers(found, source)
    return tensors


def without_wrappers(tensors: Mapping[str, T], source: str) -> dict[str, T]:
    """The same tensors without prefixes of wrappers: `module._orig_mod.last_linear.bias` is `last_linear.bias`.

    Raises CheckpointError if the file `source` has two tensors of one name then.
    """
    plain: dict[str, T] = {}
    for name, tensor in tensors.items():
        bare = _bare(name)
        if bare in plain:
            raise CheckpointError(f"{source} has the tensor {printable(bare)} twice, with and without a prefix")
        plain[bare] = tensor
    return plain


def printable(text: object, longest: int = 200) -> str:
    """Text from a file for a message: cut off, and without characters that could rewrite what is on the terminal."""
    # Not only ASCII's control characters: those that turn the writing direction are not printable either.
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)[: longest + 1]
    )
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def shown_path(path: Path) -> str:
    """A path for a message, whole: its end is what tells files apart."""
    return printable(path, longest=5000)


def listed(lines: Sequence[str], most: int) -> list[str]:
    """At most `most` lines, then one that counts the rest: what is wrong with a million names is no million lines."""
    return [*lines[:most], f"... and {len(lines) - most:,} more"] if len(lines) > most else list(lines)


def _bare(name: str) -> str:
    start = 0
    while wrapper := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper, start)), None):
        start += len(wrapper)
    return name[start:]
