"""The checkpoints of a run: background writes, which files stay, and how all ranks learn of a failed write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata, Snapshot, StateTensors, allocate_snapshot, take_snapshot
from seresnext.distributed import World
from seresnext.errors import Failure
from seresnext.metrics.status import update_status
from seresnext.process.signals import critical_section


class Background:
    """A thread for one action at a time. `wait` raises the exception of the action.

    Each action has its own thread, so that no thread exists between actions when the loader forks. The thread is no
    daemon: the process waits for the thread at exit.
    """

    def __init__(self) -> None:
        self._running: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Return whether the last action has ended with an exception. Does not wait."""
        return self._running is not None and self._running.done() and self._running.exception() is not None

    def start(self, action: Callable[[], None]) -> None:
        """Start an action. Call `wait` for the previous action first."""
        assert self._running is None
        self._running = running = Future()

        def run() -> None:
            try:
                action()
            except BaseException as error:
                running.set_exception(error)
            else:
                running.set_result(None)

        threading.Thread(target=run, name="checkpoint").start()

    def wait(self) -> None:
        """Wait until the action has ended, if there is one. Raise the exception of the action, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()


@dataclass(frozen=True)
class SavePolicy:
    """The settings of saves: which checkpoints stay, and whether training continues after a failed write.

    The `keep` newest checkpoints stay, and those of every `keep_every`-th step.
    """

    keep: int
    keep_every: int | None = None
    continue_on_failure: bool = False


class Saver:
    """A context manager that saves a run, for the time of training. Rank 0 writes in the background.

    Training waits while the tensors are copied into buffers on the host. There is one set of buffers, so one write runs
    at a time, and a save waits for the write before. The exit of the context waits for the last write.
    """

    def __init__(
        self,
        world: World,
        folder: Path | None,
        policy: SavePolicy,
        *,
        tensors: Callable[[], StateTensors],
        metadata: Callable[[int, dict[str, Any]], CheckpointMetadata],
        warn: Callable[[str], None],
    ) -> None:
        self._world = world
        self._folder = folder if world.is_first else None
        self._policy = policy
        self._tensors = tensors
        self._metadata = metadata
        self._warn = warn
        self._buffers: dict[str, Tensor] = {}
        self._background = Background()
        self._not_removed: OSError | None = None

    def __enter__(self) -> Saver:
        if self._folder:
            self._buffers = allocate_snapshot(self._tensors())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._background.wait()
        except Failure as failure:  # Another exception is on its way and must not be replaced.
            self._warn(f"warning: {failure}")

    @property
    def has_failed(self) -> bool:
        """Return whether the last write has failed, as far as this rank knows. Does not wait."""
        return self._background.has_failed

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Start to save the run after `step` completed steps, and to update `last` (and `best`).

        Call `wait` for the previous save first.
        """
        if self._folder is None:
            return
        snapshot = take_snapshot(self._tensors(), self._metadata(step, progress), self._buffers)
        best = progress["best"]
        self._background.start(lambda: self._write(snapshot, best))

    def wait(self) -> bool:
        """Wait on all ranks until the last save has ended. Return whether the file is on the disk.

        After a failed write, raises store.SaveError on all ranks. With `continue_on_failure`, warns instead.
        """
        try:
            with self._world.agreeing():
                self._join()
        except store.SaveError as error:
            if not self._policy.continue_on_failure:
                raise
            self._warn(
                f"warning: {error}. Training continues without this checkpoint (checkpoint.on_failure: continue)"
            )
            return False
        return True

    def finish(self) -> None:
        """Wait on all ranks for the last save of a run. Raises store.SaveError, also with `continue_on_failure`."""
        with self._world.agreeing():
            self._join()

    def _join(self) -> None:
        self._background.wait()
        if self._not_removed:
            error, self._not_removed = self._not_removed, None
            self._warn(f"warning: an old checkpoint could not be removed: {error}")

    def _write(self, snapshot: Snapshot, best: dict[str, Any] | None) -> None:
        assert self._folder
        is_best = best is not None and best["step"] == snapshot.step
        with critical_section():
            path = store.commit(self._folder, snapshot.step, snapshot.tensors, snapshot.metadata)
            store.update_link(self._folder, "last", path)
            if is_best:
                store.update_link(self._folder, "best", path)
        update_status(self._folder.parent, saved_step=snapshot.step, best=best)
        try:
            store.prune(self._folder, self._policy.keep, self._policy.keep_every)
        except OSError as error:
            self._not_removed = error  # Only a warning: the new checkpoint is written.
