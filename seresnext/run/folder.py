"""The folder that holds everything about one run, and the promise that only one training writes to it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from seresnext.checkpoint import store
from seresnext.distributed import World
from seresnext.errors import UsageError
from seresnext.metrics.console import Console
from seresnext.metrics.sinks import check_metrics
from seresnext.metrics.status import mark_refused, read_small_json, read_status, write_atomically, write_status
from seresnext.printable import printable

# Fields of `describe_environment` that may change the last bits of a number; packages and the commit may, too.
_BITS = ("world_size", "threads", "cpu", "cpu_capability", "gpu", "cuda", "cudnn", "python", "platform")
_PACKAGES_FOR_BITS = ("seresnext", "torch", "torchvision", "numpy", "pillow")
_PACKAGES = ("seresnext", "torch", "torchvision", "numpy", "pillow", "pydantic", "safetensors")
# The files of a run and of this project's tools, which `set_aside` moves. All others are the user's.
RUN_FILES = (
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "tensorboard",
    "log.txt",
    "checkpoints",
    "curves.png",  # scripts/plot_run.py
    "validation.json",  # scripts/demo.sh
    "report",  # validate.py --report
)
_RUN_MARKS = ("status.json", "recipe.yaml", "metrics.jsonl", "checkpoints")  # Every run folder has one of these.
_PROBE = 1 << 14  # bytes; more than the small files of a run need
_LOCK_TRIES = 100


class RunFolder:
    """A run's folder, opened and locked by rank 0. On other ranks its methods do nothing."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self._world = world
        self._lock: IO[bytes] | None = None
        self._made: list[Path] = []  # by `open`, the innermost first
        self._had_run = True
        self._may_go = False  # whether `discard` removes the files that `open` made

    @property
    def checkpoints(self) -> Path:
        """The folder of `step-*.safetensors`, `last` and `best`."""
        return self.path / "checkpoints"

    def open(self) -> str | None:
        """Make the folder and lock it.

        Returns a warning for the user, if any. Raises UsageError when the folder cannot be written or another
        training holds it.
        """
        if not self._world.is_first:
            return None
        with as_usage_error(self.path):
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            lock, notice = self._locked()
            self._had_run = any((self.path / name).exists() for name in _RUN_MARKS)
            self._may_go = not self._had_run and notice is None
            self.checkpoints.mkdir(exist_ok=True)
        with suppress(OSError):  # On a full disk whoever comes second is not told who holds it, and that is all.
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._lock = lock  # Held as long as the file is open; the kernel lets go of it however the process ends.
        return notice

    def _locked(self) -> tuple[IO[bytes], str | None]:
        """Return the locked file `lock` of the folder, made if missing, and a warning for the user, if any."""
        path = self.path / "lock"
        for _ in range(_LOCK_TRIES):
            self.path.mkdir(parents=True, exist_ok=True)
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
                raise UsageError(
                    f"{self.path} is in use by {holder}; wait for that process, stop the process, or choose another "
                    "folder with --output"
                ) from None
            except OSError as error:
                return lock, (
                    f"{self.path} cannot be locked ({error.strerror}); start only one training at a time in this folder"
                )
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock, None
            lock.close()  # A start that was refused has removed this file.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def accept(self) -> None:
        """Keep the folder, because a run begins here: from now on `discard` removes nothing."""
        self._may_go = False

    def discard(self) -> bool:
        """Remove the files that `open` made, unless a run was here before or `accept` was called.

        Returns whether the files were removed.
        """
        if not self._may_go or self._lock is None:
            return False
        with suppress(OSError):  # Other files stay, and so do the folders that contain other files.
            for name in ("status.json", "log.txt"):
                (self.path / name).unlink(missing_ok=True)
            self.checkpoints.rmdir()
            (self.path / "lock").unlink()
            for folder in self._made:
                folder.rmdir()
        self._lock.close()
        return True

    def check_writable(self, moves_files: bool = False) -> None:
        """Raise UsageError unless the files of a run can be written here. Call this before any file changes.

        `moves_files`: the start moves `metrics.jsonl` away, and need not read the file.
        """
        if not self._world.is_first:
            return
        metrics = self.path / "metrics.jsonl"
        try:
            if not moves_files:
                check_metrics(metrics)
        except OSError as error:
            raise UsageError(f"{metrics} cannot be continued ({error.strerror}); move the file away") from None
        with as_usage_error(self.path):
            for folder in (self.path, self.checkpoints):
                write_atomically(folder / ".probe", " " * _PROBE)
                (folder / ".probe").unlink()

    def set_aside(self) -> None:
        """Move the files of an earlier run into the first free `earlier-<n>`. All other files stay."""
        if not self._world.is_first or not self._had_run:
            return
        with as_usage_error(self.path):
            moving = [path for name in RUN_FILES if os.path.lexists(path := self.path / name)]
            target = next(t for n in itertools.count(1) if not os.path.lexists(t := self.path / f"earlier-{n}"))
            target.mkdir()
            for path in moving:
                path.rename(target / path.name)
            if not any(entry.is_file() for entry in target.rglob("*")):
                shutil.rmtree(target)  # Nothing was there but empty folders.
            self.checkpoints.mkdir()

    def sweep(self) -> None:
        """Remove the temporary files of an interrupted save."""
        if self._world.is_first:
            with as_usage_error(self.path):
                store.sweep(self.checkpoints)

    def write_recipe(self, text: str) -> None:
        """Write `recipe.yaml`, the recipe as this run resolved it."""
        if self._world.is_first:
            with as_usage_error(self.path):
                write_atomically(self.path / "recipe.yaml", text)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write `environment.json`."""
        if self._world.is_first:
            with as_usage_error(self.path):
                write_atomically(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def is_restart(self, launchers: list[str | None]) -> bool:
        """Whether torchrun now repeats a start that has begun the run here: one of its launchers was there, too.

        `launchers` are those of all ranks. Machines come and go within a launch, and each counts restarts by itself,
        so neither rank 0's launcher nor its count would tell.
        """
        environment = read_small_json(self.path / "environment.json")
        known = environment.get("launch") if isinstance(environment, dict) else None
        return isinstance(known, list) and any(name in known for name in launchers if name is not None)

    def write_status(self, state: str, step: int, reason: str | None = None) -> None:
        """Write `status.json`. States are running, preempted, finished and failed."""
        if self._world.is_first:
            write_status(self.path, self._world, state, step, reason)

    def status(self) -> dict[str, Any]:
        """What `status.json` says; empty when there is none."""
        return read_status(self.path)


def describe_environment(world: World) -> dict[str, Any]:
    """What a run's numbers may depend on besides its recipe, as plain data."""
    on_gpu = world.device.type == "cuda"
    return {
        "command": sys.argv,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "gpu": torch.cuda.get_device_name(world.device) if on_gpu else None,
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "git_commit": _git_commit(),
    }


def compare_environments(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return a line with the differences that may change the last bits of a number; None if there is none.

    `before` comes from a checkpoint, perhaps an older one: fields that are absent there are passed over.
    """
    old, new = _bits(before), _bits(now)
    changes = [
        f"{name} {printable(old[name], longest=80)} -> {printable(new[name], longest=80)}"
        for name in new
        if name in old and old[name] != new[name]
    ]
    if not changes:
        return None
    return f"numbers may differ in their last bits, because this differs from the checkpoint's: {'; '.join(changes)}"


def _bits(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the last bits of a number may depend on, by names for a message."""
    packages = environment.get("packages")
    found = {name: environment[name] for name in _BITS if name in environment}
    found |= {name: packages[name] for name in _PACKAGES_FOR_BITS if isinstance(packages, dict) and name in packages}
    commit = environment.get("git_commit")
    found |= {"git_commit": commit} if commit is not None else {}  # Another machine may have no git.
    return {name: value for name, value in found.items() if isinstance(value, str | int | None)}


def check_output(path: Path, data: Sequence[Path]) -> None:
    """Raise UsageError for a run folder that is or lies inside a folder of the data, or has one where a run writes."""
    try:
        for folder in data:
            if lies_in(path, folder) or any(lies_in(folder, path / name) for name in RUN_FILES):
                raise UsageError(
                    f"the run folder {path} and the data in {folder} overlap, and a run moves and removes files in the "
                    "run folder; choose another folder with --output"
                )
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL character.
        raise UsageError(f"--output {printable(path)} cannot be used ({error}); choose another folder") from None


def lies_in(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or lies inside the folder. Links are resolved; both may be missing."""
    path, folder = (Path(os.path.realpath(place)) for place in (path, folder))
    # One folder may have two names without a link: a mount, or a file system that takes capitals for small letters.
    return any(
        place == folder or (place.exists() and folder.exists() and place.samefile(folder))
        for place in (path, *path.parents)
    )


def is_same(path: Path, other: Path) -> bool:
    """Return whether two paths lead to one file or folder. A path that cannot be followed leads to none."""
    try:
        return path.samefile(other)
    except OSError:
        return False


def record_refusal(path: Path, reason: str) -> None:
    """Write into `log.txt` and `status.json` of a run folder that a start was refused before the folder was locked.

    A folder without a run does not change. A folder that a training uses does not change either: the status belongs to
    the training.
    """
    if not read_status(path):
        return
    with suppress(OSError), ExitStack() as stack:  # The refusal is printed in any case.
        if (path / "lock").is_file():
            lock = stack.enter_context((path / "lock").open("rb"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            except OSError:  # A file system without locks: a run that reads `running` may be.
                if read_status(path).get("state") == "running":
                    return
        Console(enabled=True, log=path / "log.txt").log(f"error: {reason}")
        mark_refused(path, reason)


@contextmanager
def as_usage_error(folder: Path) -> Iterator[None]:
    """Run a block that writes in a run folder before training; what the system refuses becomes a UsageError."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"cannot write to the run folder {folder}: {error.filename or folder} is not a folder; choose another "
            "with --output"
        ) from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UsageError(
            f"cannot write to the run folder {folder}: {error.strerror or error}{where}; {store.free_space(folder)}; "
            "make room there, or choose another with --output"
        ) from None


def _cpu_model() -> str | None:
    """Return the model of the processor, if the system gives the name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the code that runs, with `-dirty` when the working tree differs from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def resume_point(folder: Path) -> str:
    """Return a sentence about where a resume of the run in this folder starts."""
    checkpoints = folder / "checkpoints"
    try:
        saved = [
            path for path in (checkpoints / "last.safetensors", *store.steps(checkpoints).values()) if path.exists()
        ]
    except OSError:
        return f"A resume continues from the newest checkpoint in {checkpoints}"
    if saved:
        return f"A resume continues from {saved[-1]}"
    return "No checkpoint of this run is saved yet, so a resume starts where this run started"
