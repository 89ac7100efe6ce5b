"""A bounded folder of local copies of a server's shards, which several processes share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from seresnext.data.readers.pread import read_piece
from seresnext.data.shards.remote import Remote
from seresnext.errors import DataError
from seresnext.progress import warn

# How long to wait for room while all of the cache is being read or written, and how often to look.
_ROOM_SECONDS, _LOOK_SECONDS = 240.0, 0.05
# A shard's time of last use is set at most this often by a process; finer does not matter for which goes first.
_USE_SECONDS = 1.0


class CachedFile(Protocol):
    """A file of a known size and content."""

    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class ShardCache:
    """Local copies of shards in one folder, at most `limit` bytes of them, shared by all processes of a machine.

    A copy is named by its checksum and appears complete or not at all. When there is no room, the copies that were not
    used for the longest time go, except those that a process reads just then. All agreement is by locks on files, which
    end with the process that holds them.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.limit = limit
        self._folder = folder / "shards"
        self._used: dict[str, float] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _no_cache(self._folder, error) from None

    def check_room(self, files: Sequence[CachedFile], where: str) -> None:
        """Raise DataError when the largest of the files is larger than the whole cache."""
        largest = max((file.bytes for file in files), default=0)
        if largest > self.limit:
            raise DataError(
                f"{where}: the largest shard has {largest} bytes, and data.cache_size is {self.limit} bytes; raise it"
            )

    def keep_aside(self, remote: Remote, name: str, sha256: str, most: int) -> Path:
        """Return the path of a local copy of an index of at most `most` bytes, outside of the limit of the cache.

        A damaged copy is downloaded again. Raises DataError when no download has this checksum.
        """
        path = self._folder / f"{sha256}-{name}"
        if _is_whole(path, sha256):
            return path
        with _lock(self._folder / f"{sha256}.lock"):
            # Another process may have got it in the meantime.
            if not _is_whole(path, sha256):
                if path.exists():
                    warn(f"{path} is damaged (another checksum); it is got again")
                part = path.with_suffix(".new")
                remote.copy(name, part, sha256, most=most)
                part.replace(path)
        return path

    def has(self, shard: CachedFile) -> bool:
        """Whether there is a copy of a shard now."""
        return self._path(shard).exists()

    def read(self, remote: Remote, shard: CachedFile, offset: int, size: int) -> bytes:
        """Bytes of a shard, which is got first if it is not here."""
        while True:
            try:
                descriptor = os.open(self._path(shard), os.O_RDONLY)
            except FileNotFoundError:
                self.get(remote, shard)
                continue
            try:
                # Shared by readers; who makes room must have it alone.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                self._note_use(shard)
                return read_piece(descriptor, offset, size)
            finally:
                os.close(descriptor)

    def get(self, remote: Remote, shard: CachedFile) -> None:
        """Get a shard unless it is here. One process does, others wait for it. Raises DataError when it cannot."""
        path = self._path(shard)
        with _lock(path.with_suffix(".lock")):
            if path.exists():
                return
            part = self._make_room(shard)
            try:
                remote.copy(shard.name, part, shard.sha256, shard.bytes)
                part.replace(path)
            except OSError as error:
                raise _no_cache(self._folder, error) from None
            finally:
                part.unlink(missing_ok=True)

    def touch(self, shard: CachedFile) -> None:
        """Say that a shard will be needed again soon."""
        self._note_use(shard)

    def drop(self, shard: CachedFile) -> None:
        """Remove the copy of a shard."""
        self._path(shard).unlink(missing_ok=True)

    def _path(self, shard: CachedFile) -> Path:
        return self._folder / f"{shard.sha256}.tar"

    def _note_use(self, shard: CachedFile) -> None:
        now = time.time_ns()
        if now - self._used.get(shard.sha256, 0) > 1e9 * _USE_SECONDS:
            self._used[shard.sha256] = now
            with suppress(FileNotFoundError):
                # The system's own time stamps move on by ticks of up to 10 ms, in which shards would be used at once.
                os.utime(self._path(shard), ns=(now, now))

    def _make_room(self, shard: CachedFile) -> Path:
        """Remove copies until a shard fits, and reserve its place with an empty file that has the size in its name."""
        part = self._folder / f"{shard.sha256}.{shard.bytes}.part"
        part.unlink(missing_ok=True)  # Of a process that died: the lock of this shard is ours.
        deadline = time.monotonic() + _ROOM_SECONDS
        while True:
            with _lock(self._folder / "room.lock"):
                if self._evict(shard.bytes):
                    try:
                        part.touch()
                    except OSError as error:
                        raise _no_cache(self._folder, error) from None
                    return part
            if time.monotonic() > deadline:
                raise DataError(
                    f"the cache {self._folder} had no room for a shard for {_ROOM_SECONDS:.0f} s: all of it is being "
                    "read or written; raise data.cache_size"
                )
            time.sleep(_LOOK_SECONDS)

    def _evict(self, size: int) -> bool:
        """Whether `size` bytes fit now, after removing what has to go. Only under the lock of the room."""
        taken, copies = 0, []
        for entry in self._folder.iterdir():
            if entry.suffix == ".part":
                taken += self._reserved(entry)
            elif entry.suffix == ".tar":
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    copies.append((status.st_mtime_ns, status.st_size, entry))
                    taken += status.st_size
        for _, freed, path in sorted(copies):
            if taken + size <= self.limit:
                break
            if _remove_unless_read(path):
                taken -= freed
        return taken + size <= self.limit

    def _reserved(self, part: Path) -> int:
        """Bytes that a download in progress will take; 0 for what a process that died has left, which is removed."""
        sha256, size, _ = part.name.split(".")
        with _try_lock(part.with_name(f"{sha256}.lock")) as is_free:
            if is_free:
                with suppress(FileNotFoundError):
                    part.unlink()
                    return 0
        # Also when it has just become a copy, which was perhaps not counted as one.
        return int(size)


def _is_whole(path: Path, sha256: str) -> bool:
    """Whether there is a file, and with this checksum."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _remove_unless_read(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock alone; wait for it."""
    try:
        file = path.open("a")
    except OSError as error:
        raise _no_cache(path.parent, error) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock alone if nobody has it; yields whether."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _no_cache(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"shards cannot be kept in {folder}: {error.strerror or error}; give a folder on a local disk with room for "
        "data.cache_size with data.cache"
    )
