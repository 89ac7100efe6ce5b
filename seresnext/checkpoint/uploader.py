"""The process that uploads one checkpoint to a mirror: `python -m seresnext.checkpoint.uploader REQUEST`.

A process of its own cannot slow down the training, and a connection without an answer blocks nothing: the training
kills a process that takes too long. This module does not import torch.

The result is a JSON object on standard output: `size`, and `incomplete` with a reason if the best checkpoint could not
be uploaded or old ones not be removed; or `fenced` with the newer owner; or `failed` with a reason, and `is_final` if
another attempt would fail in the same way.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from seresnext.checkpoint.mirror_files import Damaged, Fenced, MirrorFiles, Owner, Upload
from seresnext.errors import Failure
from seresnext.process.signals import die_with_parent
from seresnext.remote import is_final, reason_of


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Upload the checkpoint of a request and remove old ones. Return the result."""
    owner = Owner(*request["owner"])
    new = Upload(request["step"], owner.number, request["number"])
    result: dict[str, Any] = {}
    try:
        files = MirrorFiles(request["address"])
        result["size"] = files.upload(owner, new, Path(request["path"]), Path(request["metrics"]))
        if request["best_path"]:
            best = Path(request["best_path"])
            files.upload(owner, new._replace(step=_step_in(best)), best, Path(request["metrics"]))
        files.prune(owner, new, request["keep"], request["keep_every"], request["best"])
    except Fenced as error:
        return {"fenced": str(error)}
    except (TypeError, AttributeError, AssertionError):
        raise  # A bug of this project.
    except Exception as error:  # Each of fsspec's libraries raises other types.
        reason = str(error) if isinstance(error, Failure | Damaged) else reason_of(error)
        return result | ({"incomplete": reason} if result else {"failed": reason, "is_final": is_final(error)})
    return result


def _step_in(path: Path) -> int:
    """Return the step in the header of a checkpoint, without the import of torch (`file_format` has the layout)."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return int(json.loads(file.read(size))["__metadata__"]["step"])


if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)
    os.nice(5)  # The training and its loader come first.
    print(json.dumps(perform(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # An open connection must not delay the end.
