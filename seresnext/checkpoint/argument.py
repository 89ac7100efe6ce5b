"""The checkpoint argument `--resume FILE`. This module does not import torch, so that a mistake is reported at once."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from seresnext.errors import UsageError
from seresnext.paths import address_in, expand_home
from seresnext.printable import printable


def checkpoint_argument(given: str) -> Path:
    """Return the path of the checkpoint that `--resume` names. Raises UsageError unless the path is a file.

    For a run folder the message names the newest checkpoint of the folder.
    """
    if address := address_in(given):
        raise UsageError(f"--resume {address} is an address. Download the checkpoint, and give the path of the file")
    path = expand_home(given)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL character.
        reason = f"no such file ({getattr(error, 'strerror', error)})"
    else:
        if stat.S_ISREG(mode):
            return path
        reason = "not a file"
        for newest in (path / "checkpoints" / "last.safetensors", path / "last.safetensors"):
            if os.path.isfile(newest):  # noqa: PTH113 (raises nothing)
                raise UsageError(f"--resume {path} is a folder. Give a checkpoint of the folder: --resume {newest}")
    raise UsageError(
        f"--resume {printable(given, longest=300)}: {reason}. Give auto, never, or the path of a checkpoint"
    )
