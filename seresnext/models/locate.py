"""The file of weights for a path that a user gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from seresnext.errors import CheckpointError
from seresnext.models.registry import MODELS, canonical_name
from seresnext.paths import address_in, expand_home
from seresnext.printable import shown_path
from seresnext.weights.opening import open_file


def find_weights(given: str | Path) -> Path:
    """Return the file of weights for a path: the file, or the checkpoint `best` of a run folder, or else `last`.

    `~` is expanded. Raises CheckpointError for an address, for a folder without checkpoints, and for a published file
    that does not exist.
    """
    if address := address_in(given):
        raise CheckpointError(
            f"{address} is an address, not a file on this machine; download the file, and give the path"
        )
    path = expand_home(given)
    try:
        if path.is_dir():
            return _checkpoint_in(path)
        is_there = path.exists()
    except (OSError, ValueError):  # A name that is too long or has a NUL character; opening the file reports the error.
        return path
    urls = [row.weights_url for row in MODELS.values() if row.weights_file == path.name]
    if urls and not is_there:
        raise CheckpointError(f"{shown_path(path)} does not exist; download the file from {urls[0]}")
    return path


def find_published(name: str) -> Path:
    """Return the published file of a model of `MODELS` in the cache folder of `torch.hub`.

    Raises CheckpointError if the file is not there, or if the SHA-256 differs from the prefix in the name of the file.
    """
    row = MODELS[canonical_name(name)]
    path = Path(torch.hub.get_dir(), "checkpoints", row.weights_file)
    fix = f"download {row.weights_url} to {shown_path(path.parent)}"
    if not path.exists():
        raise CheckpointError(f"the weights of {name} are not on this machine; {fix}, or give the path of a file")
    with open_file(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise CheckpointError(f"{shown_path(path)} is damaged: the SHA-256 is {digest}; remove the file, and {fix}")
    return path


def _checkpoint_in(folder: Path) -> Path:
    for name in ("best.safetensors", "last.safetensors"):
        for path in (folder / "checkpoints" / name, folder / name):
            if path.is_file():
                return path
    raise CheckpointError(
        f"{shown_path(folder)} is a folder without a checkpoint: checkpoints/best.safetensors and "
        "checkpoints/last.safetensors do not exist; give a file of weights, or a run folder"
    )
