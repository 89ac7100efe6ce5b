"""Checkpoints of a run: what is saved, where, which stay, and when all ranks hear of a failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.background import Background
from seresnext.checkpoint.contents import CheckpointMetadata, Snapshot, StateTensors, allocate_snapshot, take_snapshot
from seresnext.distributed import World
from seresnext.errors import Failure
from seresnext.metrics.status import update_status
from seresnext.process.signals import critical_section


class Saver:
    """Saves the parts of a run. Rank 0 writes, in the background; the others hear whether it worked.

    Training waits only while the tensors are copied into memory that is kept for it. There is one such copy, so at most
    one write is under way: a save that comes too early waits for the one before. The saver is entered for the time of
    training; leaving it, however that comes about, waits for the write.
    """

    def __init__(
        self,
        *,
        world: World,
        folder: Path | None,
        keep: int,
        keep_every: int | None,
        goes_on: bool,
        parts: Callable[[], StateTensors],
        facts: Callable[[int, dict[str, Any]], CheckpointMetadata],
        say: Callable[[str], None],
    ) -> None:
        self._world = world
        self._folder = folder if world.is_first else None
        self._keep = keep
        self._keep_every = keep_every
        self._goes_on = goes_on
        self._parts = parts
        self._facts = facts
        self._say = say
        self._buffers: dict[str, Tensor] = {}
        self._background = Background()
        self._not_removed: OSError | None = None

    def __enter__(self) -> Saver:
        if self._folder:
            self._buffers = allocate_snapshot(self._parts())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._background.wait()
        except Failure as failure:  # On the way out for another reason, which is the one to be raised.
            self._say(f"warning: {failure}")

    @property
    def has_failed(self) -> bool:
        """Whether the last write is over and failed, as far as this rank knows. Does not wait."""
        return self._background.has_failed

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Begin to save the run as it is after `step` completed steps, and to point `last` (and `best`) to it.

        `settle` must have come since the save before.
        """
        if self._folder is None:
            return
        snapshot = take_snapshot(self._parts(), self._facts(step, progress), self._buffers)
        best = progress["best"]
        self._background.start(lambda: self._write(snapshot, best))

    def settle(self) -> bool:
        """Wait, on all ranks together, until the last save is on the disk; returns whether it is, as all ranks know.

        When it failed, raises store.SaveError on all ranks, or says so and returns False: `checkpoint.on_failure`.
        """
        try:
            with self._world.agreeing():
                self._wait()
        except store.SaveError as error:
            if not self._goes_on:
                raise
            self._say(f"warning: {error}; training goes on without this checkpoint (checkpoint.on_failure: continue)")
            return False
        return True

    def finish(self) -> None:
        """Wait, on all ranks together, for the last save of a run. Raises store.SaveError: nothing is left to go on."""
        with self._world.agreeing():
            self._wait()

    def _wait(self) -> None:
        self._background.wait()
        if self._not_removed:
            error, self._not_removed = self._not_removed, None
            self._say(f"warning: an old checkpoint could not be removed: {error}")

    def _write(self, snapshot: Snapshot, best: dict[str, Any] | None) -> None:
        assert self._folder
        is_best = best is not None and best["step"] == snapshot.step
        with critical_section():
            path = store.commit(self._folder, snapshot.step, snapshot.tensors, snapshot.metadata)
            store.point(self._folder, "last", path)
            if is_best:
                store.point(self._folder, "best", path)
        update_status(self._folder.parent, saved_step=snapshot.step, best=best)
        try:
            store.prune(self._folder, self._keep, self._keep_every)
        except OSError as error:
            self._not_removed = error  # The new one is there all the same.
