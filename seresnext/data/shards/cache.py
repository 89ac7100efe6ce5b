"""A bounded cache folder of a server's shards, shared by several processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from seresnext.data.readers.files import read_piece
from seresnext.data.shards.format import Shard
from seresnext.data.shards.remote import Remote
from seresnext.errors import DataError
from seresnext.progress import warn

# Time limit and interval of the wait for room, while other processes read or write the whole cache.
_ROOM_SECONDS, _LOOK_SECONDS = 240.0, 0.05
# A process sets the time of last use of a shard at most this often.
_USE_SECONDS = 1.0


class ShardCache:
    """Local copies of shards in one folder, at most `limit` bytes of them, shared by all processes of a machine.

    A copy is named by its checksum, and appears under this name only when it is complete. To make room, the least
    recently used copies are removed, except copies that a process reads at this moment. Processes use file locks, which
    end with the process.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.limit = limit
        self._folder = folder / "shards"
        self._used: dict[str, float] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _no_cache(self._folder, error) from None

    def check_room(self, files: Sequence[Shard], where: str) -> None:
        """Raise DataError when the largest of the files is larger than the whole cache."""
        largest = max((file.bytes for file in files), default=0)
        if largest > self.limit:
            raise DataError(
                f"{where}: the largest shard has {largest} bytes, and data.cache_size is {self.limit} bytes; raise "
                "data.cache_size"
            )

    def fetch_index(self, remote: Remote, name: str, sha256: str, most: int) -> Path:
        """Return the path of a local copy of an index of at most `most` bytes, outside of the limit of the cache.

        A damaged copy is downloaded again. Raises DataError when no download has this checksum.
        """
        path = self._folder / f"{sha256}-{name}"
        if _is_whole(path, sha256):
            return path
        with _lock(self._folder / f"{sha256}.lock"):
            # Another process may have downloaded the index in the meantime.
            if not _is_whole(path, sha256):
                if path.exists():
                    warn(f"{path} is damaged (another checksum) and is downloaded again")
                part = path.with_suffix(".new")
                remote.copy(name, part, sha256, most=most)
                part.replace(path)
        return path

    def has(self, shard: Shard) -> bool:
        """Return whether there is a copy of a shard now."""
        return self._path(shard).exists()

    def read(self, remote: Remote, shard: Shard, offset: int, size: int) -> bytes:
        """Return bytes of a shard, after a download if there is no copy."""
        while True:
            try:
                descriptor = os.open(self._path(shard), os.O_RDONLY)
            except FileNotFoundError:
                self.fetch(remote, shard)
                continue
            try:
                # Readers share the lock. `_remove_unless_read` needs the lock alone.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                self.touch(shard)
                return read_piece(descriptor, offset, size)
            finally:
                os.close(descriptor)

    def fetch(self, remote: Remote, shard: Shard) -> None:
        """Download a shard without a copy. One process downloads, the others wait. Raises DataError on failure."""
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

    def drop(self, shard: Shard) -> None:
        """Remove the copy of a shard."""
        self._path(shard).unlink(missing_ok=True)

    def _path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.sha256}.tar"

    def touch(self, shard: Shard) -> None:
        """Set the time of last use of a shard to now, so that the copy stays for a while."""
        now = time.time_ns()
        if now - self._used.get(shard.sha256, 0) > 1e9 * _USE_SECONDS:
            self._used[shard.sha256] = now
            with suppress(FileNotFoundError):
                # The system's own clock for files has ticks of up to 10 ms, too coarse for an order of use.
                os.utime(self._path(shard), ns=(now, now))

    def _make_room(self, shard: Shard) -> Path:
        """Remove copies until a shard fits. Return an empty file that reserves the size in its name."""
        part = self._folder / f"{shard.sha256}.{shard.bytes}.part"
        part.unlink(missing_ok=True)  # A leftover of a process that died, because this process holds the shard's lock.
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
                    f"the cache {self._folder} had no room for a shard for {_ROOM_SECONDS:.0f} s, because other "
                    "processes read or write all of the cache; raise data.cache_size"
                )
            time.sleep(_LOOK_SECONDS)

    def _evict(self, size: int) -> bool:
        """Remove copies until `size` bytes fit, and return whether they fit. The caller holds the lock of the room."""
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
        """Return the bytes of a download in progress. Remove the leftover of a process that died, and return 0."""
        sha256, size, _ = part.name.split(".")
        with _try_lock(part.with_name(f"{sha256}.lock")) as is_free:
            if is_free:
                with suppress(FileNotFoundError):
                    part.unlink()
                    return 0
        # The download may just have become a copy that the caller did not count.
        return int(size)


def _is_whole(path: Path, sha256: str) -> bool:
    """Return whether there is a file with this checksum."""
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
    """Wait for a lock and hold it alone."""
    try:
        file = path.open("a")
    except OSError as error:
        raise _no_cache(path.parent, error) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Hold a free lock alone. Yield whether the lock was free."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _no_cache(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"shards cannot be kept in {folder}: {error.strerror or error}; set data.cache to a folder on a local disk "
        "with room for data.cache_size"
    )
