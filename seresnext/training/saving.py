"""Checkpoints of a run: what is saved, where, and which stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import Facts, Parts, capture
from seresnext.distributed import World


class Saver:
    """Saves the parts of a run. Rank 0 writes; the others hear whether it worked."""

    def __init__(
        self,
        *,
        world: World,
        folder: Path | None,
        keep: int,
        goes_on: bool,
        parts: Callable[[], Parts],
        facts: Callable[[int, dict[str, Any]], Facts],
        say: Callable[[str], None],
    ) -> None:
        self._world = world
        self._folder = folder
        self._keep = keep
        self._goes_on = goes_on
        self._parts = parts
        self._facts = facts
        self._say = say
        self._buffers: dict[str, Tensor] = {}

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Save the run as it is after `step` completed steps, and point `last` (and `best`) to it.

        Raises store.SaveError on all ranks, or says so and goes on, as `checkpoint.on_failure` has it.
        """
        try:
            self._world.together(lambda: self._write(step, progress))
        except store.SaveError as error:
            if not self._goes_on:
                raise
            self._say(f"warning: {error}; training goes on without this checkpoint (checkpoint.on_failure: continue)")

    def _write(self, step: int, progress: dict[str, Any]) -> None:
        if self._folder is None or not self._world.is_first:
            return
        snapshot = capture(self._parts(), self._facts(step, progress), self._buffers)
        path = store.commit(self._folder, step, snapshot.tensors, snapshot.metadata)
        store.point(self._folder, "last", path)
        if progress["best"] and progress["best"]["step"] == step:
            store.point(self._folder, "best", path)
        store.prune(self._folder, self._keep)
