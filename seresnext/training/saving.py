"""The checkpoints of a run: background writes, which files stay, and how all ranks learn of a failed write."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata, StateTensors, allocate_snapshot, take_snapshot
from seresnext.checkpoint.mirror import Mirror
from seresnext.distributed import World
from seresnext.errors import Failure
from seresnext.metrics.status import update_status
from seresnext.process.signals import critical_section


@dataclass(eq=False)
class Saver:
    """A context manager that saves a run, for the time of training. Rank 0 writes in the background.

    Training waits while the tensors are copied into buffers on the host. There is one set of buffers, so one write runs
    at a time, and a save waits for the write before. The exit of the context waits for the last write.

    The `keep` newest checkpoints stay, and those of every `keep_every`-th step. With `continue_on_failure`, training
    continues after a failed write. The `mirror` gets each checkpoint after the write.
    """

    world: World
    folder: Path | None
    tensors: Callable[[], StateTensors]
    metadata: Callable[[int, dict[str, Any]], CheckpointMetadata]
    warn: Callable[[str], None]
    keep: int
    keep_every: int | None = None
    continue_on_failure: bool = False
    mirror: Mirror | None = None

    def __post_init__(self) -> None:
        self._folder = self.folder if self.world.is_first else None
        self._buffers: dict[str, Tensor] = {}
        self._write_result: Future[None] | None = None

    def __enter__(self) -> Saver:
        if self._folder:
            self._buffers = allocate_snapshot(self.tensors())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._join()
        except Failure as failure:  # Another exception is on its way and must not be replaced.
            self.warn(f"warning: {failure}")

    @property
    def has_failed(self) -> bool:
        """Return whether the last write has failed, as far as this rank knows. Does not wait."""
        result = self._write_result
        return result is not None and result.done() and result.exception() is not None

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Start to save the run after `step` completed steps, and to update `last` (and `best`).

        Call `wait` for the previous save first.
        """
        if self._folder is None:
            return
        assert self._write_result is None
        take_snapshot(self.tensors(), self._buffers)
        metadata = self.metadata(step, progress).to_metadata()
        # One thread for each write: no thread exists between writes, when the loader forks.
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._write_result = thread.submit(self._write, step, metadata, progress["best"])
        thread.shutdown(wait=False)

    def wait(self) -> bool:
        """Wait on all ranks until the last save has ended. Return whether the file is on the disk.

        After a failed write, raises store.SaveError on all ranks. With `continue_on_failure`, warns instead.
        """
        try:
            self.finish()
        except store.SaveError as error:
            if not self.continue_on_failure:
                raise
            self.warn(f"warning: {error}. Training continues without this checkpoint (checkpoint.on_failure: continue)")
            return False
        return True

    def finish(self) -> None:
        """Wait on all ranks for the last save of a run. Raises store.SaveError, also with `continue_on_failure`."""
        with self.world.agreeing():
            self._join()

    def _join(self) -> None:
        """Wait for the write, if there is one. Raise the exception of the write, once."""
        result, self._write_result = self._write_result, None
        if result:
            result.result()

    def _write(self, step: int, metadata: dict[str, str], best: dict[str, Any] | None) -> None:
        """Write a checkpoint and the links, and remove old checkpoints."""
        assert self._folder
        with critical_section():
            path = store.commit(self._folder, step, self._buffers, metadata)
            store.update_link(self._folder, "last", path)
            if best is not None and best["step"] == step:
                store.update_link(self._folder, "best", path)
        update_status(self._folder.parent, saved_step=step, best=best)
        if self.mirror:
            best_step = best["step"] if best else None
            self.mirror.put(path, step, best=best_step, keep=self.keep, keep_every=self.keep_every)
        try:
            store.prune(self._folder, self.keep, self.keep_every)
        except OSError as error:
            self.warn(f"warning: an old checkpoint could not be removed: {error}")
