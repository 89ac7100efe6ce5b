"""train.py with a narrow network and a disturbance: `tests/disturbed.py PART RANK SECONDS train.py's arguments`.

PART is `data` (each batch of the rank takes so many seconds longer), `computing` (each forward pass does), `none`, or
`spoilt`: the labels of step 141 are wrong, and the batches from step 151 on take so many seconds longer.
"""

from __future__ import annotations

import os
import sys
import time
from functools import wraps
from typing import Any


def slow_down(owner: Any, name: str, seconds: float, first_step: int = 0) -> None:
    """Let a method sleep before each call, or before the batches from a step on (from 0)."""
    function = getattr(owner, name)

    @wraps(function)
    def slowed(self: Any, batch: Any) -> Any:
        if not first_step or batch.step >= first_step:
            time.sleep(seconds)
        return function(self, batch)

    setattr(owner, name, slowed)


def spoil_labels(owner: Any, name: str, step: int) -> None:
    """Give the batches of a step (from 0) wrong labels."""
    function = getattr(owner, name)

    @wraps(function)
    def spoiled(self: Any, batch: Any) -> Any:
        labels = (batch.labels + 1) % 3 if batch.step == step else batch.labels
        return function(self, batch._replace(labels=labels))

    setattr(owner, name, spoiled)


def main(part: str, rank: str, seconds: str, *arguments: str) -> int:
    from exactness import narrow

    from seresnext import cli
    from seresnext.data.batches import TrainImages
    from seresnext.models import SENet, registry
    from seresnext.process.stop_request import StopRequest
    from seresnext.training.step import TrainingStep

    registry.create_model = narrow
    if rank == os.environ.get("RANK", "0"):
        match part:
            case "data":
                slow_down(TrainImages, "make", float(seconds))
            case "computing":
                slow_down(SENet, "forward_features", float(seconds))
            case "spoilt":
                spoil_labels(TrainingStep, "_forward_backward", 140)
                slow_down(TrainImages, "make", float(seconds), first_step=150)
    with StopRequest() as stop:
        return cli.main(["train", *arguments], stop)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
