"""Files of a server through fsspec, and a bounded folder of local copies that several processes share.

Needs the extra `remote`. Credentials are found where fsspec's libraries look for them (environment, netrc, their own
configuration files), never in an address, and no message shows any.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import urlsplit

from seresnext.errors import DataError

T = TypeVar("T")

ATTEMPTS = 5
"""How often something is tried before it is given up."""

FIRST_PAUSE = 1.0
"""Seconds before the second attempt, at the most; each later pause may be twice as long as the one before."""

_CHUNK = 8 << 20
_MOST_BYTES_AT_ONCE = 256 << 20
_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60
_FINAL_ANSWERS = (400, 401, 403, 404, 410)
# How long to wait for room while all of the cache is being read or written, and how often to look.
_ROOM_SECONDS, _LOOK_SECONDS = 300.0, 0.05
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


def is_remote(root: str) -> bool:
    """Whether a root is an address and not a folder."""
    return "://" in root


def shown_url(url: str) -> str:
    """An address without user, password and query, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Refused(Exception):
    """What will not change by trying again."""


class Remote:
    """The files below one address. Raises DataError for an address that cannot be used."""

    def __init__(self, root: str, folder: str) -> None:
        parts = urlsplit(root)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise DataError(
                f"{shown_url(root)}: data.root has a user, a password or a query in it, and is stored in every "
                "checkpoint; give credentials through the environment, ~/.netrc or the cloud's own configuration"
            )
        self._url = f"{root.rstrip('/')}/{folder}/"
        self._scheme = parts.scheme

    def place(self, name: str) -> str:
        """The address of a file, for messages."""
        return self._url + name

    def read(self, name: str) -> bytes:
        """A small file. Raises DataError naming its address when it cannot be had."""

        def attempt() -> bytes:
            content = b"".join(self._chunks(name, _MOST_BYTES_AT_ONCE))
            if len(content) > _MOST_BYTES_AT_ONCE:
                raise _Refused(f"it has more than {_MOST_BYTES_AT_ONCE} bytes")
            return content

        return self._persistently(name, attempt)

    def copy(self, name: str, target: Path, sha256: str, size: int | None = None) -> None:
        """Write a file to `target`. Raises DataError when it cannot be had whole and with this checksum."""

        def attempt() -> None:
            digest, count = hashlib.sha256(), 0
            with target.open("wb") as file:
                for chunk in self._chunks(name, size):
                    _write(file, chunk)
                    digest.update(chunk)
                    count += len(chunk)
            if size is not None and count != size:
                raise OSError(f"{count} bytes came instead of {size}")
            if digest.hexdigest() != sha256:
                raise OSError("its checksum is another than its index says")

        self._persistently(name, attempt)

    def _chunks(self, name: str, most: int | None) -> Iterator[bytes]:
        """The contents of a file, in order, until just beyond `most` bytes."""
        file_system = _file_system(self._scheme)
        # One request for all of it where that can be read as it comes; ranges of it elsewhere. A size that is given,
        # any but 0, keeps fsspec from asking for it first and taking every failure of that for a missing file.
        as_stream = {"block_size": 0, "size": 1} if self._scheme in ("http", "https") else {"cache_type": "none"}
        count = 0
        with file_system.open(self._url + name, "rb", **as_stream) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
                count += len(chunk)
                if most is not None and count > most:
                    return

    def _persistently(self, name: str, attempt: Callable[[], T]) -> T:
        reason = ""
        for number in range(ATTEMPTS):
            if number:
                # Not all at once: what failed for one process failed for its neighbours, too.
                time.sleep(FIRST_PAUSE * 2 ** (number - 1) * (0.5 + 0.5 * random.random()))
            try:
                return attempt()
            except ImportError as error:
                raise DataError(
                    f"{self.place(name)} needs the extra `remote` ({error.name or error}): pip install -e '.[remote]'"
                ) from None
            except Exception as error:  # Each of fsspec's libraries has its own kinds.
                if isinstance(error, TypeError | AttributeError | AssertionError):
                    raise  # Ours.
                reason = _reason(error)
                if _is_final(error):
                    raise DataError(f"{self.place(name)} cannot be read: {reason}") from None
        raise DataError(f"{self.place(name)} cannot be read, also at the {ATTEMPTS}th attempt: {reason}")


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise _Refused(f"its copy cannot be written to {Path(file.name).parent}: {error.strerror}") from None


def _file_system(scheme: str) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        # `trust_env` is for proxies and ~/.netrc. Compressed on its way, a file would have another length.
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        options["headers"] = {"Accept-Encoding": "identity"}
    if scheme == "s3":
        options["config_kwargs"] = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _SILENT_SECONDS}
    try:
        return fsspec.filesystem(scheme, **options)
    except ValueError:
        raise _Refused(f"{scheme}:// is no kind of address that is known; give https://, s3:// or gs://") from None


def _is_final(error: Exception) -> bool:
    return (
        isinstance(error, FileNotFoundError | PermissionError | _Refused)
        or getattr(error, "status", 0) in _FINAL_ANSWERS
        or "Credential" in type(error).__name__
    )


def _reason(error: Exception) -> str:
    """What went wrong, in one line, without whatever a library put into its message that looks like an address."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, _Refused):
        return str(error)
    status = getattr(error, "status", None)
    if status is not None:
        return f"the server answers {status}"
    text = " ".join(str(error).split())
    text = re.sub(r"\S*://\S*", "(address)", text)
    return text[:200] or type(error).__name__


# ------------------------------------------------------------------------------------------------ the cache


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

    def keep_aside(self, remote: Remote, name: str, sha256: str) -> Path:
        """The path of a local copy of a file that does not count and is not removed, such as an index."""
        path = self._folder / f"{sha256}-{name}"
        with _lock(self._folder / f"{sha256}.lock"):
            if not path.exists():
                part = path.with_suffix(".new")
                remote.copy(name, part, sha256)
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
                data = os.pread(descriptor, size, offset)
                while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
                    data += more
                return data
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
        now = time.time()
        if now - self._used.get(shard.sha256, 0) > _USE_SECONDS:
            self._used[shard.sha256] = now
            with suppress(FileNotFoundError):
                os.utime(self._path(shard))

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
