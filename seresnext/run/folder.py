"""The run folder: all files of one run, and a lock so that only one training writes to the folder."""

import errno
import fcntl
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from seresnext.checkpoint import store
from seresnext.checkpoint.mirror import NAME as MIRROR
from seresnext.checkpoint.mirror import Mirror
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, Failure, UsageError, printable
from seresnext.files import is_remote, read_small_json, write_atomically
from seresnext.metrics.console import Console
from seresnext.metrics.jsonlines import check_metrics
from seresnext.metrics.status import read_status, update_status, write_status
from seresnext.recipe.schema import DataSection

# The files of a run and of this project's tools, which `accept` moves. All others are the user's.
RUN_FILES = (
    "recipe.yaml", "environment.json", "split.csv", "metrics.jsonl", MIRROR, "tensorboard", "trackers", "wandb",
    "first_batch.png", "log.txt", "checkpoints",
    # Of `--profile`, `seresnext plot`, scripts/demo.sh and `--report`.
    "profile", "curves.png", "validation.json", "report",
)  # fmt: skip
_RUN_MARKS = ("status.json", "recipe.yaml", "metrics.jsonl", "checkpoints")  # Every run folder has one of these.
_LOCK_TRIES = 100


class RunFolder:
    """A run's folder, opened and locked by rank 0. On other ranks its methods do nothing.

    `mirror` is the mirror at the address of the recipe (`checkpoint.mirror`), on rank 0 and from `open` on, or None.
    """

    def __init__(self, path: Path, world: World, address: str | None = None) -> None:
        self.path = path
        self.mirror: Mirror | None = None
        self._address = address
        self._world = world
        self._lock: IO[bytes] | None = None
        self._made: list[Path] = []  # by `open`, the innermost first
        self._had_run = True
        self._may_discard = False

    @property
    def checkpoints(self) -> Path:
        """The folder of `step-*.safetensors`, `last` and `best`."""
        return self.path / "checkpoints"

    def open(self) -> str | None:
        """Make the folder and lock it.

        Returns a warning for the user, if any. Raises UsageError when the folder cannot be written or another
        training holds the lock.
        """
        if not self._world.is_first:
            return None
        if self._address:
            self.mirror = Mirror(self._address, self.path)
            self.mirror.on_upload = lambda step: self.update_status(mirrored_step=step)
            if not is_remote(self._address) and lies_in(Path(self.mirror.address), self.path):
                raise UsageError(f"checkpoint.mirror {self._address} is in the run folder; give a place outside")
        with as_usage_error(self.path):
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            lock, notice = _lock(self.path)
            self._had_run = any((self.path / name).exists() for name in _RUN_MARKS)
            self._may_discard = not self._had_run and notice is None
            self.checkpoints.mkdir(exist_ok=True)
        with suppress(OSError):  # On a full disk the file cannot name the holder. The lock works without the name.
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._lock = lock  # The kernel releases the lock when the file is closed or the process ends.
        return notice

    def accept(self, starts_over: bool = False, step: int = 0, checkpoint: Path | None = None) -> None:
        """Keep the folder, because a run begins here: from now on `discard` removes nothing.

        The run begins at a step, from a checkpoint if there is one, and owns the address of the mirror.

        Removes the temporary files of an interrupted save. A run that starts over moves the files of an earlier run
        into the first free `earlier-<n>`. All other files stay.
        """
        self._may_discard = False
        if not self._world.is_first:
            return
        with as_usage_error(self.path):
            store.remove_temporary(self.checkpoints)
            if starts_over and self._had_run:
                target = next(t for n in itertools.count(1) if not os.path.lexists(t := self.path / f"earlier-{n}"))
                target.mkdir()
                for path in [path for name in RUN_FILES if os.path.lexists(path := self.path / name)]:
                    path.rename(target / path.name)
                self.checkpoints.mkdir()
            self.update_status(mirrored_step=None)
            if self.mirror:
                self.mirror.claim(step, checkpoint)

    def discard(self) -> bool:
        """Remove the files that `open` made, unless a run was here before or `accept` was called.

        Returns whether the files were removed.
        """
        if not self._may_discard or self._lock is None:
            return False
        with suppress(OSError):  # Other files stay, and so do the folders that contain other files.
            fetched = store.steps(self.checkpoints).values()  # from the mirror: no run was here
            for file in (self.path / "status.json", self.path / "log.txt", *fetched):
                file.unlink(missing_ok=True)
            self.checkpoints.rmdir()
            (self.path / "lock").unlink()
            for folder in self._made:
                folder.rmdir()
        self._lock.close()
        return True

    def is_restart(self, launchers: list[str | None]) -> bool:
        """Return whether this start is a torchrun restart of the launch that began the run in this folder.

        `launchers` has the launcher of each rank. One launcher in common is enough: machines join and leave a launch,
        and each machine counts its own restarts.
        """
        known = read_small_json(self.path / "environment.json").get("launch")
        return isinstance(known, list) and any(name in known for name in launchers if name is not None)

    def check_writable(self, starts_over: bool = False) -> None:
        """Raise UsageError unless the files of a run can be written here. Call this before any file changes."""
        if not self._world.is_first:
            return
        metrics = self.path / "metrics.jsonl"
        try:
            if not starts_over:  # A run that starts over moves the file away, and need not read the file.
                check_metrics(metrics)
        except OSError as error:
            raise UsageError(f"{metrics} cannot be continued ({error.strerror}); move the file away") from None
        with as_usage_error(self.path):
            for folder in (self.path, self.checkpoints):
                write_atomically(folder / ".probe", " " * (1 << 14))  # more than the small files of a run need
                (folder / ".probe").unlink()

    def write(self, name: str, text: str) -> None:
        """Write a file of the run, whole or not at all."""
        if self._world.is_first:
            with as_usage_error(self.path):
                write_atomically(self.path / name, text)

    def write_status(self, state: str, step: int, reason: str | None = None) -> None:
        """Write `status.json`. States are running, preempted, finished and failed."""
        if self._world.is_first:
            write_status(self.path, self._world, state, step, reason)

    def update_status(self, **fields: Any) -> None:
        """Update fields of a running run: `step`, `saved_step`, `total_steps`, `best`."""
        if self._world.is_first:
            update_status(self.path, **fields)

    @contextmanager
    def tracking_status(self, console: Console, step: Callable[[], int]) -> Iterator[None]:
        """Write the status `running` before a block, and `failed` with the reason if the block raises.

        The status changes as soon as the folder is locked: a reader must not take the end of an earlier start for the
        end of this start. The log gets the reason, too. A refused start leaves no folder if no run was there before.
        """
        world = self._world

        def fail(reason: str) -> None:
            console.log(f"error: {reason}")
            # Any rank may write the failure. The first reason stays, and so does the end of a saved or finished run. A
            # machine that was cut off may report a failure after the others have started the run again.
            status = read_status(self.path)
            if status.get("state", "running") == "running" and begun in (None, status.get("started")):
                write_status(self.path, world, "failed", step(), reason)

        begun = None
        self.write_status("running", step())
        world.heartbeat.on_peer_lost = lambda reason: fail(f"rank {world.rank}: {reason}")
        world.heartbeat.advice = lambda: resume_point(self.path)
        try:
            world.broadcast(None)  # No rank writes a failure before rank 0 has written `running`.
            begun = read_status(self.path).get("started")
            with world.translate_errors():
                yield
                world.broadcast(None)  # No rank leaves before rank 0 has written the end.
        except BaseException as error:
            reason, is_shared = f"{type(error).__name__}: {error}", world.size == 1
            if isinstance(error, Failure):
                reason, is_shared = str(error), error.is_shared or is_shared
                error.is_recorded = True
            # Rank 0 writes a failure that all ranks share, and the message names no rank.
            if world.is_first or not is_shared:
                is_refusal = isinstance(error, UsageError | DataError | CheckpointError)
                if not (is_refusal and self.discard()):
                    fail(reason if is_shared else f"rank {world.rank}: {reason}")
            raise
        finally:
            del world.heartbeat.on_peer_lost, world.heartbeat.advice  # They keep this folder and its lock.


def _lock(folder: Path) -> tuple[IO[bytes], str | None]:
    """Return the locked file `lock` of a folder, both made if missing, and a warning for the user, if any."""
    path = folder / "lock"
    for _ in range(_LOCK_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = path.open("ab+", buffering=0)
        except FileNotFoundError:  # Another start was refused and has just removed the folder.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(200).decode(errors="replace").strip() or "another process"
            lock.close()
            fix = "wait for that process, stop the process, or choose another folder with --output"
            raise UsageError(f"{folder} is in use by {holder}; {fix}") from None
        except OSError as error:
            fix = "start only one training at a time in this folder"
            return lock, f"{folder} cannot be locked ({error.strerror}); {fix}"
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock, None
        lock.close()  # A start that was refused has removed this file.
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def record_refusal(path: Path, reason: str) -> None:
    """Write into `log.txt` and `status.json` of a run folder that a start was refused before the folder was locked.

    A folder without a run does not change. A folder that a training uses does not change either: the status belongs to
    the training.
    """
    if not read_status(path):
        return
    with suppress(OSError, UsageError):  # The refusal is printed in any case.
        lock, notice = _lock(path)
        with lock:
            # In a file system without locks, a training may use a folder with the status `running`.
            if notice is None or read_status(path).get("state") != "running":
                Console(enabled=True, log=path / "log.txt").log(f"error: {reason}")
                update_status(path, state="failed", reason=reason)


def resume_point(folder: Path) -> str:
    """Return a sentence about where a resume of the run in this folder starts."""
    checkpoints = folder / "checkpoints"
    try:
        files = [checkpoints / "last.safetensors", *store.steps(checkpoints).values()]
        saved = [path for path in files if path.exists()]
    except OSError:
        return f"A resume continues from the newest checkpoint in {checkpoints}"
    if saved:
        return f"A resume continues from {saved[-1]}"
    return "No checkpoint of this run is saved yet, so a resume starts where this run started"


def check_output(path: Path, data: DataSection) -> None:
    """Raise UsageError if a run folder and a folder of the data overlap, so that a run would move data files."""
    is_here = data.format != "synthetic" and not is_remote(data.root)
    try:
        for folder in (Path(data.root, name) for name in (".", data.train_split, data.val_split) if is_here):
            if lies_in(path, folder) or any(lies_in(folder, path / name) for name in RUN_FILES):
                raise UsageError(
                    f"the run folder {path} and the data in {folder} overlap, and a run moves and removes files in the "
                    "run folder; choose another folder with --output"
                )
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL character.
        raise UsageError(f"--output {printable(path)} cannot be used ({error}); choose another folder") from None


def lies_in(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or lies inside the folder. Links are resolved; both may be missing."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_same(path: Path, other: Path) -> bool:
    """Return whether two paths lead to one file or folder. A path that cannot be followed leads to none."""
    try:
        return path.samefile(other)
    except OSError:
        return False


@contextmanager
def as_usage_error(folder: Path) -> Iterator[None]:
    """Turn an error of the operating system, in a block that writes in a run folder, into a UsageError."""
    try:
        yield
    except OSError as error:
        problem = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        raise UsageError(
            f"cannot write to the run folder {folder}: {problem}; make room there, or choose another with --output"
        ) from None
