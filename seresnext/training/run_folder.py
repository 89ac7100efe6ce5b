"""The folder that holds everything about one run, and the promise that only one training writes to it."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from seresnext.checkpoint import store
from seresnext.distributed import World
from seresnext.errors import UsageError
from seresnext.training.status import read_status, write_atomically, write_status

_PACKAGES = ("seresnext", "torch", "torchvision", "numpy", "pillow", "pydantic", "safetensors")


class RunFolder:
    """A run's folder, opened and locked by rank 0. On other ranks its methods do nothing."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self._world = world
        self._lock: IO[bytes] | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of `step-*.safetensors`, `last` and `best`."""
        return self.path / "checkpoints"

    def open(self) -> str | None:
        """Make the folder and lock it.

        Returns what to tell the user, if anything. Raises UsageError when the folder cannot be written or another
        training holds it.
        """
        if not self._world.is_first:
            return None
        with writing(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("ab+", buffering=0)
        notice = None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip() or "another process"
            lock.close()
            raise UsageError(
                f"{self.path} is in use by {holder}; wait for it, stop it, or choose another folder with --output"
            ) from None
        except OSError as error:
            notice = f"{self.path} cannot be locked ({error.strerror}): see to it that one training at a time uses it"
        with suppress(OSError):  # On a full disk whoever comes second is not told who holds it, and that is all.
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._lock = lock  # Held as long as the file is open; the kernel lets go of it however the process ends.
        return notice

    def set_aside(self) -> None:
        """Move what an earlier run left into the first free `earlier-<n>`; earlier such folders stay where they are."""
        if not self._world.is_first:
            return
        kept = ("lock", "status.json")  # What this start holds, and how it is.
        with writing(self.path):
            moving = [path for path in self.path.iterdir() if path.name not in kept and not _is_earlier(path)]
            target = next(t for n in itertools.count(1) if not (t := self.path / f"earlier-{n}").exists())
            target.mkdir()
            for path in moving:
                path.rename(target / path.name)
            if not any(entry.is_file() for entry in target.rglob("*")):
                shutil.rmtree(target)  # Nothing was there but empty folders.
            self.checkpoints.mkdir()

    def sweep(self) -> None:
        """Remove what a save that was broken off left."""
        if self._world.is_first:
            with writing(self.path):
                store.sweep(self.checkpoints)

    def write_recipe(self, text: str) -> None:
        """Write `recipe.yaml`, the recipe as this run resolved it."""
        if self._world.is_first:
            with writing(self.path):
                write_atomically(self.path / "recipe.yaml", text)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write `environment.json`."""
        if self._world.is_first:
            with writing(self.path):
                write_atomically(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def is_of_this_launch(self, launchers: list[str | None]) -> bool:
        """Whether torchrun now repeats a start that has begun the run here: one of its launchers was there, too.

        `launchers` are those of all ranks. Machines come and go within a launch, and each counts restarts by itself,
        so neither rank 0's launcher nor its count would tell.
        """
        try:
            environment = json.loads((self.path / "environment.json").read_text())
        except (OSError, ValueError):
            return False
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
        "cpus": os.cpu_count(),
        "git_commit": _git_commit(),
    }


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Run a block that writes in a run folder before training; what the system refuses becomes a UsageError."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UsageError(
            f"cannot write to the run folder {folder}: {error.strerror or error}{where}; {store.free_space(folder)}; "
            "make room there, or choose another with --output"
        ) from None


def _is_earlier(path: Path) -> bool:
    return path.name.startswith("earlier-")


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
