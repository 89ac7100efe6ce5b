"""The checkpoint argument `--resume FILE`. This module does not import torch, so that a mistake is reported at once."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from seresnext.errors import UsageError
from seresnext.paths import address_in, expand_home

_LONGEST = 300  # characters of a path in a message
_NEWEST = "last.safetensors"


def checkpoint_argument(given: str) -> Path:
    """Return the path of the checkpoint that `--resume` names. Raises UsageError unless the path is a file.

    For a run folder the message names the newest checkpoint of the folder.
    """
    if address := address_in(given):
        raise UsageError(f"--resume {address} is an address. Download the checkpoint, and give the path of the file")
    path = expand_home(given)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = f"no such file ({error.strerror})"
    except ValueError as error:  # The name has a NUL character.
        reason = f"no such file ({error})"
    else:
        if stat.S_ISREG(mode):
            return path
        reason = "not a file"
        for newest in (path / "checkpoints" / _NEWEST, path / _NEWEST):
            if os.path.isfile(newest):  # noqa: PTH113 (raises nothing)
                raise UsageError(f"--resume {path} is a folder. Give a checkpoint of the folder: --resume {newest}")
    shown = given if len(given) <= _LONGEST else f"{given[:_LONGEST]}..."
    raise UsageError(f"--resume {shown}: {reason}. Give auto, never, or the path of a checkpoint")
