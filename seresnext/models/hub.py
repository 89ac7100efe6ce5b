"""Models of the Hugging Face Hub, which timm and this project write: `config.json` and the weights in one folder."""

from __future__ import annotations

from pathlib import Path

from seresnext.models.locate import download
from seresnext.models.pretrained import LoadedWeights, open_weights

__all__ = ["download", "open_hub_folder"]


def open_hub_folder(folder: Path) -> LoadedWeights:
    """Return the weights in a folder, with classes and preprocessing of its `config.json`. Raise CheckpointError."""
    return open_weights(folder)
