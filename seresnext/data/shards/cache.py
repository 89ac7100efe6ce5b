"""The shards of a server behind a bounded cache folder, which several processes share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from seresnext.data.readers.files import read_piece
from seresnext.data.readers.index_cache import kept_in
from seresnext.data.shards.format import Shard
from seresnext.data.shards.remote import Remote
from seresnext.errors import DataError
from seresnext.progress import warn

# Time limit and interval of the wait for room, while other processes read or write the whole cache.
_ROOM_SECONDS, _LOOK_SECONDS = 240.0, 0.05


def fetch_index(remote: Remote, name: str, sha256: str, most: int, cache: Path) -> Path:
    """Return the path of a local copy of an index of at most `most` bytes, outside of the limit of the cache.

    A damaged copy is downloaded again. Raises DataError when no download has this checksum.
    """
    folder = _make_folder(cache)
    path = folder / f"{sha256}-{name}"
    with _lock(folder / f"{sha256}.lock"):
        with suppress(OSError), path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return path
        if path.exists():
            warn(f"{path} is damaged (another checksum) and is downloaded again")
        part = path.with_suffix(".new")
        with kept_in(folder), part.open("wb") as file:
            remote.copy(name, file, sha256, most)
            part.replace(path)
    return path


class RemoteShards:
    """Shards of a server, with local copies of at most `limit` bytes that all processes of a machine share.

    The first read of a shard downloads the whole shard. A copy is named by its checksum, and appears under this name
    only when it is complete. To make room, the least recently used copies are removed, except copies that a process
    reads or writes at this moment. File locks end with their process. Raises DataError if one shard exceeds the cache.
    """

    def __init__(self, remote: Remote, shards: Sequence[Shard], cache: Path, limit: int) -> None:
        self.remote = remote
        self.shards = tuple(shards)
        self.limit = limit
        self._folder = _make_folder(cache)
        largest = max((shard.bytes for shard in shards), default=0)
        if largest > limit:
            raise DataError(f"{remote.address('')}: a shard has {largest} bytes; raise data.cache_size, now {limit}")

    def location(self, shard: int) -> str:
        """Return the address of a shard."""
        return self.remote.address(self.shards[shard].name)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return bytes of a shard, after a download if there is no copy."""
        while True:
            try:
                descriptor = os.open(self._path(shard), os.O_RDONLY)
            except FileNotFoundError:
                self.fetch(shard)
                continue
            try:
                # Readers share the lock. `_remove_unless_used` needs the lock alone.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                self.touch(shard)
                return read_piece(descriptor, offset, size)
            finally:
                os.close(descriptor)

    def discard(self, shard: int) -> None:
        """Remove the copy of a shard, so that the next read downloads the shard."""
        self._path(shard).unlink(missing_ok=True)

    def touch(self, shard: int) -> bool:
        """Set the time of last use of a copy to now, so that the copy stays. Return whether there is a copy."""
        now = time.time_ns()
        try:
            # The system's own clock for files has ticks of up to 10 ms, too coarse for an order of use.
            os.utime(self._path(shard), ns=(now, now))
        except FileNotFoundError:
            return False
        return True

    def fetch(self, shard: int) -> None:
        """Download a shard without a copy. One process downloads, the others wait. Raises DataError on failure."""
        path = self._path(shard)
        part = path.with_suffix(".part")
        with _lock(path.with_suffix(".lock")):
            if path.exists():
                return
            wanted = self.shards[shard]
            try:
                with kept_in(self._folder), self._reserve(part, wanted.bytes) as file:
                    self.remote.copy(wanted.name, file, wanted.sha256, wanted.bytes)
                    part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    def _path(self, shard: int) -> Path:
        return self._folder / f"{self.shards[shard].sha256}.tar"

    def _reserve(self, part: Path, size: int) -> BinaryIO:
        """Remove copies until a file fits. Return the open and locked file, which has the size already."""
        part.unlink(missing_ok=True)  # A leftover of a process that died, because this process holds the shard's lock.
        deadline = time.monotonic() + _ROOM_SECONDS
        while True:
            with _lock(self._folder / "room.lock"):
                if self._evict(size):
                    file = part.open("wb")
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.truncate(size)
                    return file
            if time.monotonic() > deadline:
                raise DataError(
                    f"the cache {self._folder} had no room for a shard for {_ROOM_SECONDS:.0f} s, because other "
                    "processes read or write all of the cache; raise data.cache_size"
                )
            time.sleep(_LOOK_SECONDS)

    def _evict(self, size: int) -> bool:
        """Remove files until `size` bytes fit, and return whether they fit. The caller holds the lock of the room."""
        files = []
        # Downloads first: a download that ends meanwhile is then counted twice, and never missed.
        for pattern in ("*.part", "*.tar"):
            for path in self._folder.glob(pattern):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
        taken = sum(freed for _, freed, _ in files)
        for _, freed, path in sorted(files):
            if taken + size <= self.limit:
                break
            if _remove_unless_used(path):
                taken -= freed
        return taken + size <= self.limit


def _remove_unless_used(path: Path) -> bool:
    """Remove a file that no process reads or writes. Return whether the file is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return path.suffix == ".tar"  # A download that has ended is a copy now.
    return True


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it alone."""
    with kept_in(path.parent):
        file = path.open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_folder(cache: Path) -> Path:
    folder = cache / "shards"
    with kept_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
