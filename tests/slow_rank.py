"""train.py with a narrow network and one slow rank: `tests/slow_rank.py PART RANK SECONDS train.py's arguments`.

PART is `data` (each batch of the rank takes so many seconds longer), `computing` (each forward pass does) or `none`.
"""

from __future__ import annotations

import os
import sys
import time
from functools import wraps
from typing import Any


def slow_down(owner: Any, name: str, seconds: float) -> None:
    """Let a function sleep before each call."""
    function = getattr(owner, name)

    @wraps(function)
    def slowed(*args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **options)

    setattr(owner, name, slowed)


def main(part: str, rank: str, seconds: str, *arguments: str) -> int:
    """Train, with the delay on the rank. Return the exit code."""
    from exactness import narrow

    from seresnext import cli
    from seresnext.data.batches import TrainImages
    from seresnext.models import SENet, registry
    from seresnext.process.stop_request import StopRequest

    registry.create_model = narrow
    if rank == os.environ["RANK"] and part != "none":
        owner, name = {"data": (TrainImages, "make"), "computing": (SENet, "forward_features")}[part]
        slow_down(owner, name, float(seconds))
    with StopRequest() as stop:
        return cli.main(["train", *arguments], stop)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
