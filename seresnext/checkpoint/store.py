"""The checkpoints of a run in their folder: each appears whole or not at all, and a good one is there at any instant.

`step-00001234.safetensors` for each step kept, and `last.safetensors` and `best.safetensors`, which are second names
of two of them.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from seresnext.checkpoint import file_format
from seresnext.errors import CheckpointError, Failure
from seresnext.weights.safetensors_file import read_header, read_safetensors

Pointer = Literal["last", "best"]
POINTERS: tuple[Pointer, ...] = ("last", "best")

_STEP_NAME = re.compile(r"step-([0-9]{8,})\.safetensors")
_COPY_CHUNK = 8 << 20  # bytes
_TEMPORARY_NAME = re.compile(r"\.(step-[0-9]{8,}|last|best)\.safetensors\.tmp")


class SaveError(Failure):
    """A checkpoint could not be written. What was in the folder before is still there."""


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

    A temporary file in the same folder is written, synced and renamed, then the folder is synced: a crash or a power
    cut at any moment leaves the old files and either all of the new one or nothing under its name. Tensors are on the
    CPU. Raises SaveError, with the temporary file removed, when the disk is full or anything else fails.
    """
    assert metadata.get("step") == str(step), "the metadata belong to another step"
    header, order = file_format.header(tensors, metadata)
    size = len(header) + sum(tensor.nbytes for tensor in order)
    path = folder / f"step-{step:08d}.safetensors"
    temporary = _temporary(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        file_format.write_synced(temporary, header, order)
        temporary.replace(path)
        _sync_folder(folder)
    except OSError as error:
        _discard(temporary)  # before the free space is looked at
        raise SaveError(_why_not_saved(path, size, error)) from error
    finally:
        _discard(temporary)
    return path


def point(folder: Path, name: Pointer, path: Path) -> None:
    """Make `<name>.safetensors` the same file as `path`: a hard link put in place by a rename, a copy where links fail.

    The old pointer is there until the new one is. Raises SaveError.
    """
    pointer = folder / f"{name}.safetensors"
    temporary = _temporary(pointer)
    size = path.stat().st_size
    try:
        # A link left by a crash must go first: opened for writing, it would be the old checkpoint itself.
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # Not every file system has hard links, and each says so with another error number.
            _copy_synced(path, temporary)
        temporary.replace(pointer)
        _sync_folder(folder)
    except OSError as error:
        raise SaveError(_why_not_saved(pointer, size, error)) from error
    finally:
        # Also after success: a rename between two names of one file does nothing and leaves both (rename(2)).
        _discard(temporary)


def prune(folder: Path, keep: int, keep_every: int | None = None) -> list[Path]:
    """Remove all but the `keep` newest checkpoints and those of each `keep_every`-th step; returns what was removed.

    What `last` and `best` point to stays reachable under those names. The newest is never removed. Raises OSError.
    """
    assert keep >= 1
    old = list(steps(folder).items())[:-keep]
    removed = [path for step, path in old if keep_every is None or step % keep_every]
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files that a crashed run left; returns them. For the start of a run, when nobody writes."""
    leftovers = [path for path in _entries(folder) if _TEMPORARY_NAME.fullmatch(path.name)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


def set_aside(folder: Path, beyond: int) -> list[Path]:
    """Rename the checkpoints of later steps than `beyond`, pointers too, to `.superseded`; returns the new names.

    For a run that goes on from an older checkpoint: the later ones belong to a past that will not happen again, and
    as the newest by number they would be resumed from, and kept by `prune` in place of the new ones.
    """
    later = [path for step, path in steps(folder).items() if step > beyond]
    later += [pointer for pointer in _pointers(folder) if _step_of(pointer) > beyond]
    return [_renamed(path, ".superseded") for path in later]


def set_aside_best(folder: Path) -> None:
    """Rename `best` to `.superseded`, if there is one. The resumed run has another best, or none."""
    pointer = folder / "best.safetensors"
    if os.path.lexists(pointer):
        _renamed(pointer, ".superseded")


def retire_best(folder: Path) -> Path | None:
    """Rename `best` to the first free `best.superseded-<n>.safetensors`; returns the new name, None without a `best`.

    For a run with a changed validation: the old best stays, also when the validation changes a second time.
    """
    pointer = folder / "best.safetensors"
    if not os.path.lexists(pointer):
        return None
    names = (folder / f"best.superseded-{number}.safetensors" for number in itertools.count(1))
    return pointer.rename(next(name for name in names if not os.path.lexists(name)))


def set_aside_damaged(damaged: Iterable[Path]) -> list[Path]:
    """Rename files that `newest_valid` found damaged to `.corrupt`; returns the new names.

    `newest_valid` no longer reports renamed files, and `prune` does not count renamed files as kept.
    """
    return [_renamed(path, ".corrupt") for path in damaged]


# Reading


def is_name_of_run(path: Path) -> bool:
    """Return whether a file of this name in the folder of a run counts as a checkpoint of the run."""
    return _STEP_NAME.fullmatch(path.name) is not None or path.name in [f"{name}.safetensors" for name in POINTERS]


def named(folder: Path, step: int) -> list[Path]:
    """The files of a folder that by their names may be the best checkpoint of a run, if it is that of `step`."""
    paths = [folder / f"step-{step:08d}.safetensors", folder / "best.safetensors"]
    return [path for path in paths if path.is_file()]


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints in the folder by step, oldest first (by number: step 100000000 comes after 99999999)."""
    found = {}
    for path in _entries(folder):
        if match := _STEP_NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def verify(path: Path) -> dict[str, str]:
    """Check every byte of a checkpoint against its digest and return its metadata.

    Raises CheckpointError naming the file when it is damaged, cut short, not a checkpoint, or cannot be read.
    """
    _verify_digest(path)
    return read_header(path).metadata


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and metadata of a checkpoint, digest checked. Raises CheckpointError."""
    _verify_digest(path)
    return read_safetensors(path)


def newest_valid(folder: Path) -> Newest:
    """Return the checkpoint of the latest step with a right digest, and a warning for each file that was skipped.

    The candidates are `step-*`, `last` and `best`: a pointer may be a copy, and the only file left. The folder does not
    change. Raises CheckpointError when there are checkpoints and none is valid, or when only renamed damaged files are
    left: the run must not start from nothing without a notice, also not in a restart by torchrun.
    """
    warnings: list[str] = []
    damaged: list[Path] = []
    for names in _candidates(folder):
        try:
            file_format.verify_digest(names[0])
        except CheckpointError as error:
            damaged += names
            warnings.append(f"{error}; the checkpoint before it is tried")
        except OSError as error:
            # Nothing says that the content is bad, so the file keeps its name.
            warnings.append(f"{names[0]} cannot be read ({error.strerror}); the checkpoint before it is tried")
        else:
            return Newest(names[0], warnings, damaged)
    warnings = warnings or [
        f"{path} was found damaged before" for path in _entries(folder) if path.suffix == ".corrupt"
    ]
    if warnings:
        listing = "\n  ".join(warnings)
        raise CheckpointError(
            f"none of the {len(warnings)} checkpoints in {folder} is valid:\n  {listing}\n"
            "restore one of them from a backup, or start again from nothing with --resume never"
        )
    return Newest(None, [], [])


def free_space(folder: Path) -> str:
    """How much room the disk of a folder has, in words for a message."""
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes are free"
    except OSError:
        return "the free space is unknown"


# Parts of the above


def _verify_digest(path: Path) -> None:
    try:
        file_format.verify_digest(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _copy_synced(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, _COPY_CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power cut."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # The answer of file systems that cannot sync a folder, fsync(2).
            raise
    finally:
        os.close(file)


def _why_not_saved(path: Path, size: int, error: OSError) -> str:
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would be larger than the limit for a file here (see ulimit -f)",
        errno.EIO: "the disk reported an input/output error",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "there is no permission to write there",
    }.get(error.errno or 0, error.strerror or str(error))
    return (
        f"{path} could not be saved: {reason}; it needs {size:,} bytes, {free_space(path.parent)}; "
        "the checkpoints saved before it are as they were"
    )


def _candidates(folder: Path) -> list[list[Path]]:
    """Return the files to try, each as a list of all names of the file.

    The latest step comes first. At one step `step-*` comes first.
    """
    groups: dict[object, list[Path]] = {}
    for path in [*steps(folder).values(), *_pointers(folder)]:
        try:
            status = path.stat()
            identity: object = (status.st_dev, status.st_ino)
        except OSError:  # A link to nothing: reading the file gives the reason.
            identity = path
        groups.setdefault(identity, []).append(path)
    return sorted(groups.values(), key=lambda names: max(map(_claimed_step, names)), reverse=True)


def _claimed_step(path: Path) -> int:
    """Return the step in the header of a file; if the header cannot be read, the step in the name of the file."""
    step, match = _step_of(path), _STEP_NAME.fullmatch(path.name)
    return int(match[1]) if match and step < 0 else step


def _pointers(folder: Path) -> list[Path]:
    pointers = [folder / f"{name}.safetensors" for name in POINTERS]
    return [pointer for pointer in pointers if os.path.lexists(pointer)]


def _step_of(path: Path) -> int:
    """The step that a checkpoint says it is of, -1 where it says nothing."""
    try:
        return int(read_header(path).metadata["step"])
    except (CheckpointError, KeyError, ValueError):
        return -1


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _discard(temporary: Path) -> None:
    with suppress(OSError):  # What made the write fail may do the same here; the next start sweeps.
        temporary.unlink(missing_ok=True)


def _renamed(path: Path, suffix: str) -> Path:
    target = path.with_name(path.name + suffix)
    return path.replace(target)
