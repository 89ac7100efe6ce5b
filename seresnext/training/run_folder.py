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
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from seresnext.distributed import World
from seresnext.errors import UsageError

_PACKAGES = ("seresnext", "torch", "torchvision", "numpy", "pillow", "pydantic", "safetensors")


class RunFolder:
    """A run's folder, opened and locked by rank 0. On other ranks its methods do nothing."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self._world = world
        self._lock: IO[str] | None = None

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
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise UsageError(
                f"cannot write to the run folder {self.path}: {error.strerror}; choose another with --output"
            ) from None
        notice = None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise UsageError(
                f"{self.path} is in use by {holder}; wait for it, stop it, or choose another folder with --output"
            ) from None
        except OSError as error:
            notice = f"{self.path} cannot be locked ({error.strerror}): see to it that one training at a time uses it"
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        self._lock = lock  # Held as long as the file is open; the kernel lets go of it however the process ends.
        return notice

    def set_aside(self) -> None:
        """Move what an earlier run left into the first free `earlier-<n>`; earlier such folders stay where they are."""
        if not self._world.is_first:
            return
        moving = [path for path in self.path.iterdir() if path.name != "lock" and not path.name.startswith("earlier-")]
        target = next(t for n in itertools.count(1) if not (t := self.path / f"earlier-{n}").exists())
        target.mkdir()
        for path in moving:
            path.rename(target / path.name)
        if not any(entry.is_file() for entry in target.rglob("*")):
            shutil.rmtree(target)  # Nothing was there but empty folders.
        self.checkpoints.mkdir()

    def write_recipe(self, text: str) -> None:
        """Write `recipe.yaml`, the recipe as this run resolved it."""
        if self._world.is_first:
            write_atomically(self.path / "recipe.yaml", text)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write `environment.json`."""
        if self._world.is_first:
            write_atomically(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def is_of_this_launch(self) -> bool:
        """Whether an earlier start of the same launch of torchrun, which it now repeats, has begun the run here."""
        try:
            environment = json.loads((self.path / "environment.json").read_text())
        except (OSError, ValueError):
            return False
        return _launch() is not None and environment.get("launch") == _launch()

    def write_status(self, state: str, step: int, reason: str | None = None) -> None:
        """Write `status.json`. States are running, preempted, finished and failed."""
        if self._world.is_first:
            write_status(self.path, self._world, state, step, reason)

    def status(self) -> dict[str, Any]:
        """What `status.json` says; empty when there is none."""
        return read_status(self.path)


def write_status(folder: Path, world: World, state: str, step: int, reason: str | None) -> None:
    """Write `status.json` of a run folder. torchrun hides its workers' exit codes, so this is where outcomes stand."""
    status = {
        "state": state,
        "step": step,
        "reason": reason,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "world_size": world.size,
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        write_atomically(folder / "status.json", json.dumps(status, indent=2) + "\n")
    except OSError as error:
        # The outcome itself counts more than the note of it, and a full disk has a message of its own.
        print(f"warning: {folder / 'status.json'} cannot be written ({error.strerror})", file=sys.stderr)


def read_status(folder: Path) -> dict[str, Any]:
    """What `status.json` of a run folder says; empty when there is none or it cannot be read."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


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
        "launch": _launch(),
    }


def _launch() -> str | None:
    """What one launch of torchrun is known by through all its restarts; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    # torchrun gives no name to a launch whose machines are counted beforehand; then it is known by its process.
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name


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
