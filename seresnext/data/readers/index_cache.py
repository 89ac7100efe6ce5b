"""The cache of indices, in a folder outside of the data. A machine builds an index once, and after the data changed.

The signature of the data shows changes: size and times of archives, or names and times of class folders. A start
compares signatures and does not look at every file. A record is a file with the digest of the index of a signature. A
signature without a record costs one listing of the data, which finds an existing index or builds another one. The name
of an index file contains the digest of the content, so no other index replaces a file in use.

Some times show no changes: equal times of all folders (a mounted object store, an archive unpacked with fixed times),
and times that are always now. One process of the machine lists such data at each start, and writes a record for this
start only.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from seresnext.data.readers.index import VERSION, Index, NotAnIndex, digest_of, write_index
from seresnext.distributed import launcher_id
from seresnext.errors import DataError
from seresnext.progress import warn

# A time stamp moves on by ticks: 10 ms at the slowest kernel clock, 2 s where a file system keeps whole seconds.
_FINE_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_100_000_000
_UNUSED_SECONDS = 30 * 86_400  # The age at which an unused index is removed. Few runs take longer.
_MOST_LISTINGS = 3  # of data that changes meanwhile, before the start fails


class Signature(NamedTuple):
    """The state of data: a digest of names, sizes and times, and the newest time (nanoseconds since 1970).

    `shows_changes` is false where the data can change while the digest stays.
    """

    digest: str
    newest: int
    shows_changes: bool = True


def times_of(status: os.stat_result) -> tuple[int, int]:
    """Return the times of a file in nanoseconds: of the modification, which programs can set, and of the change."""
    return status.st_mtime_ns, status.st_ctime_ns


def sign(*facts: object, times: Sequence[tuple[int, int]], shows_changes: bool = True) -> Signature:
    """Return the signature of facts (plain data) and of `times_of` files."""
    text = json.dumps([VERSION, facts, times])
    newest = max((max(each) for each in times), default=0)
    return Signature(hashlib.sha256(text.encode()).hexdigest(), newest, shows_changes)


def cache_folder(cache: Path | None) -> Path:
    """Create and return the folder `cache`, by default `$XDG_CACHE_HOME/seresnext` or `~/.cache/seresnext`.

    Raises DataError when the folder cannot be created.
    """
    with kept_in(cache or "the user's cache folder"):
        folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seresnext"
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def kept_in(folder: Path | str) -> Iterator[None]:
    """Raise DataError for a cache folder that cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home.
        raise DataError(
            f"the index or the shards of the data cannot be kept in {folder}: "
            f"{getattr(error, 'strerror', None) or error}; set data.cache to a folder on a disk with room"
        ) from None


def index_path(cache: Path | None, kind: str, root: Path, split: str) -> Path:
    """Return the path of the index of a split in the folder of `cache_folder`, without the digest in the name."""
    where = hashlib.sha256(f"{kind}\0{root.resolve()}\0{split}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder(cache) / f"{kind}-{where[:32]}.index"


def open_or_build(path: Path, signature: Callable[[], Signature], build: Callable[[], Index]) -> Index:
    """Return the index of data for a path of `index_path`; call `build` to list the data where no index fits.

    One process of the machine lists, the others wait. Raises DataError if the cache fails, or the data keeps changing.
    """
    if (index := _recorded(path, signature())) is not None:
        return index
    with locked(path):
        # Another process may have listed the data in the meantime.
        if (index := _recorded(path, signature())) is not None:
            return index
        _sweep(path)
        found, key = _list(path, signature, build)
        with kept_in(path.parent):
            index = save_index(path, found, key or _this_start())
    return index if key else _noticed(index)


def save_index(path: Path, found: Index, key: str) -> Index:
    """Write an index, unless the cache has the index, and record it for a signature or a start, if `key` is not empty.

    Return the index of the cache.
    """
    digest = digest_of(found)
    file = _file(path, digest, "index")
    try:
        index = Index.open(file)  # A valid file is not replaced: other processes may have mapped the file.
    except NotAnIndex as error:
        if file.exists():
            warn(f"{error}; the index is built again")
        write_index(file, found)
        index = Index.open(file)
    if key:
        _file(path, key, "record").write_text(digest)
    return index


def mark_stale(index: Index) -> None:
    """Make the next start list the data again, because a file of the index is missing. This run keeps the index."""
    stem, _, _ = index.path.stem.rpartition("-")
    for record in index.path.parent.glob(f"{stem}-*.record"):
        with suppress(OSError):
            record.unlink()


def _file(path: Path, digest: str, suffix: str) -> Path:
    return path.with_name(f"{path.stem}-{digest}.{suffix}")


def _list(path: Path, signature: Callable[[], Signature], build: Callable[[], Index]) -> tuple[Index, str]:
    """List data that does not change meanwhile. Return an index, and the signature if it shows later changes."""
    last = ""
    for _ in range(_MOST_LISTINGS):
        before = signature()
        tick = _FINE_TICK_NS if before.newest % 1_000_000_000 else _COARSE_TICK_NS
        if abs(time.time_ns() - before.newest) < tick:
            # A change in the same tick of the clock would leave no trace.
            time.sleep(tick / 1e9)
            before = signature()
        found = build()
        if signature().digest == before.digest:
            return found, before.digest if before.shows_changes else ""
        digest = digest_of(found)
        # The times may always be now. Two listings that agree show that no name changed.
        if digest == last or _file(path, digest, "index").exists():
            return found, ""
        last = digest
    raise DataError("the data changed during the build of the index; start again when no program writes to the data")


def _recorded(path: Path, signature: Signature) -> Index | None:
    """Return the index that a record names for this signature or for this start, or None. Damage counts as none."""
    start = _this_start()
    for key in [signature.digest] * signature.shows_changes + [start] * bool(start):
        with suppress(OSError, ValueError, NotAnIndex):
            record = _file(path, key, "record")
            index = Index.open(_file(path, record.read_text(), "index"))
            with suppress(OSError):  # The cache may be read-only.
                record.touch()  # Many disks keep no time of last use.
                index.path.touch()
            return _noticed(index) if key == start else index
    return None


def _noticed(index: Index) -> Index:
    notice = "the times of the data show no changes, so each start lists the data"
    return replace(index, notices=(*index.notices, notice))


def _this_start() -> str:
    """Return a digest of this start under torchrun, the same for all ranks of a machine; empty without torchrun."""
    launch = launcher_id()
    start = f"{launch} {os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    return "" if launch is None else hashlib.sha256(start.encode()).hexdigest()


def _sweep(path: Path) -> None:
    """Remove indices and records of this data that were not used for a long time, and leftovers of killed builds.

    A young file may belong to another machine.
    """
    for left in path.parent.glob(f"{path.stem}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _UNUSED_SECONDS:
                remove = shutil.rmtree if left.is_dir() else Path.unlink
                remove(left)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    # One lock per machine: machines that share the cache may have different data under the same path.
    lock = _file(path, hashlib.sha256(socket.gethostname().encode()).hexdigest(), "lock")
    with kept_in(path.parent):
        lock.touch()  # Keeps `_sweep` away.
        file = lock.open("a")
    with file:
        # A network file system may have no locks. Then each process builds an index, and the last rename wins.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
