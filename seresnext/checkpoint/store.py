"""The checkpoint folder of a run. A file appears complete or not at all, and a valid checkpoint exists at any time.

The folder has `step-00001234.safetensors` for each step that is kept. `last.safetensors` and `best.safetensors` are
second names (hard links) of two of these files.
"""

import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from seresnext.checkpoint import file_format
from seresnext.errors import CheckpointError, Failure
from seresnext.files import UnreadableError
from seresnext.weights.safetensors_file import read_header, read_safetensors, verify_digest

Pointer = Literal["last", "best"]
POINTERS: tuple[Pointer, ...] = ("last", "best")

_STEP_NAME = re.compile(r"step-([0-9]{8,})\.safetensors")
_TEMPORARY_NAME = re.compile(r"\.(step-[0-9]{8,}|last|best)\.safetensors\.tmp")


class SaveError(Failure):
    """A failed write of a checkpoint. The older files in the folder are unchanged."""


class Newest(NamedTuple):
    """The result of `newest_valid`: the file, or None if nothing was ever saved, and warnings to print.

    `damaged` lists the damaged files that were skipped, each under all names of the file.
    """

    path: Path | None
    warnings: list[str]
    damaged: list[Path]


# Writing


def commit(folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write the checkpoint of `step` and return its path. Equal content gives equal bytes.

    A temporary file in the same folder is written, synced and renamed, then the folder is synced. A crash or a power
    cut at any time leaves the old files, and the new file complete or absent. The tensors must be on the CPU. Raises
    SaveError if the write fails, for example on a full disk.
    """
    assert metadata.get("step") == str(step), "the metadata belongs to another step"
    path = folder / f"step-{step:08d}.safetensors"
    write(path, tensors, metadata)
    return path


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file of tensors and metadata, as `commit` does."""
    header, order = file_format.header(tensors, metadata)
    with _saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as temporary:
            file_format.write_synced(temporary, header, order)


def receive(folder: Path, step: int, download: Callable[[Callable[[bytes], object]], None]) -> Path:
    """Write the checkpoint of `step` and return its path. `download` passes the bytes to a function.

    Raises CheckpointError for other content than a checkpoint of the step. After any error the folder is unchanged.
    """
    path = folder / f"step-{step:08d}.safetensors"
    with _replacing(path) as temporary:
        with temporary.open("wb") as file:
            download(file.write)
            file.flush()
            os.fsync(file.fileno())
        if verify(temporary).get("step") != str(step):
            raise CheckpointError(f"{path.name} is a checkpoint of another step")
    return path


def update_link(folder: Path, name: Pointer, path: Path) -> None:
    """Make `<name>.safetensors` a hard link to `path`, or a copy on a file system without hard links.

    A rename puts the new link in place, so the old link exists until then. Raises SaveError.
    """
    pointer = folder / f"{name}.safetensors"
    with _saving(pointer), _replacing(pointer) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # File systems without hard links raise different error numbers.
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())


def prune(folder: Path, keep: int, keep_every: int | None = None) -> None:
    """Remove all checkpoints but the `keep` newest and those of every `keep_every`-th step.

    The files of `last` and `best` stay reachable under these names. The newest is never removed. Raises OSError.
    """
    assert keep >= 1
    for step, path in list(steps(folder).items())[:-keep]:
        if keep_every is None or step % keep_every:
            path.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files of a crashed run. Call this while no other process writes."""
    for path in _entries(folder):
        if _TEMPORARY_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def mark_superseded(folder: Path, beyond: int) -> list[Path]:
    """Rename the checkpoints and links of steps after `beyond` to `.superseded`. Return the new names.

    A resumed run repeats the later steps. A later resume would choose such an obsolete checkpoint, and `prune` would
    remove new checkpoints first.
    """
    later = [path for step, path in steps(folder).items() if step > beyond]
    later += [pointer for pointer in _pointers(folder) if step_of(pointer) > beyond]
    return [_renamed(path, ".superseded") for path in later]


def retire_best(folder: Path) -> Path | None:
    """Rename `best` to the first free `best.superseded-<n>.safetensors`. Return the new name, or None without `best`.

    A run whose validation changed, or whose best is of an obsolete step, starts a new best. All old ones stay.
    """
    pointer = folder / "best.safetensors"
    if not os.path.lexists(pointer):
        return None
    names = (folder / f"best.superseded-{number}.safetensors" for number in itertools.count(1))
    return pointer.rename(next(name for name in names if not os.path.lexists(name)))


def mark_corrupt(damaged: Iterable[Path]) -> list[Path]:
    """Rename files that `newest_valid` found damaged to `.corrupt`, so that no function counts the files."""
    return [_renamed(path, ".corrupt") for path in damaged]


# Reading


def steps(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in the folder by step, in the order of the numbers (100000000 comes after 99999999)."""
    found = {int(match[1]): path for path in _entries(folder) if (match := _STEP_NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def step_of(path: Path) -> int:
    """Return the step in the header of a checkpoint, or else the step in the name of the file, or else -1."""
    try:
        return int(read_header(path)["step"])
    except (CheckpointError, KeyError, ValueError):
        match = _STEP_NAME.fullmatch(path.name)
        return int(match[1]) if match else -1


def verify(path: Path) -> dict[str, str]:
    """Check every byte of a checkpoint against the digest, and return the metadata.

    Raises CheckpointError for a file that is damaged, truncated, no checkpoint, or not readable.
    """
    verify_digest(path)
    return read_header(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Check the digest, and return the tensors (on the CPU) and metadata of a checkpoint. Raises CheckpointError."""
    verify_digest(path)
    return read_safetensors(path)


def newest_valid(folder: Path) -> Newest:
    """Return the checkpoint of the latest step with a right digest, and a warning for each file that was skipped.

    The candidates are `step-*`, `last` and `best`; a link may be a copy, and the only file left. Raises CheckpointError
    if none of them is valid: a run must not silently start from nothing.
    """
    warnings, damaged = [], []
    # At equal steps, `step-*` comes first.
    paths = sorted([*steps(folder).values(), *_pointers(folder)], key=step_of, reverse=True)
    for path in paths:
        if path in damaged:
            continue
        try:
            verify_digest(path)
        except CheckpointError as error:
            warnings.append(f"{error}; trying the previous checkpoint")
            if not isinstance(error, UnreadableError):
                damaged += [name for name in paths if name.exists() and name.samefile(path)]
        else:
            return Newest(path, warnings, damaged)
    if warnings:
        raise CheckpointError(
            "\n  ".join([f"none of the {len(warnings)} checkpoints in {folder} is valid:", *warnings])
            + "\nRestore one of them from a backup, or start from the beginning with --resume never"
        )
    return Newest(None, [], [])


# Helpers


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"{path} could not be saved: {error.strerror or error}; older files are unchanged"
        raise SaveError(f"{problem}; make room there, or let this user write there") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a name for a temporary file. The block writes and syncs the file, which then takes the place of `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Remove a link that a crash left. To open this link for writing would overwrite the old checkpoint.
        temporary.unlink(missing_ok=True)
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        # Also after success: a rename between two links of one file does nothing and leaves both (rename(2)).
        with suppress(OSError):  # This may fail like the write. The next start removes the file.
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that renames survive a power cut."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # File systems that cannot sync a folder raise EINVAL, fsync(2).
            raise
    finally:
        os.close(file)


def _pointers(folder: Path) -> list[Path]:
    pointers = [folder / f"{name}.safetensors" for name in POINTERS]
    return [pointer for pointer in pointers if os.path.lexists(pointer)]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _renamed(path: Path, suffix: str) -> Path:
    return path.replace(path.with_name(path.name + suffix))
