"""Where the index of a split is kept, and when it is built: once, by one process, and anew when the data changed.

It lies in a cache folder outside of the data. That the data changed is seen from archives (size and time) or class
folders (names and times), never from every file.

What was seen is part of the file's name. Machines that share a home, and have data under one path on disks of their
own, would else replace each other's index at every start, and pull the file from under a run that has it mapped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from seresnext.data.index import VERSION, Contents, Index, NotAnIndex, write_index
from seresnext.data.progress import warn
from seresnext.errors import DataError

# A time stamp moves on by ticks: 10 ms at the slowest kernel clock, 2 s where a file system keeps whole seconds.
_FINE_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_100_000_000
# When what a killed build left is removed, and when an index that nothing opened since: longer than runs usually take.
_LEFT_SECONDS = 3600
_UNUSED_SECONDS = 30 * 86_400
# An index's time of last use is set at most this often.
_USE_SECONDS = 86_400


class Stamp(NamedTuple):
    """What the data looked like: a digest that changes with it, and its newest time (nanoseconds since 1970)."""

    digest: str
    newest: int


def stamp_of(*facts: object, times: Sequence[int]) -> Stamp:
    """The stamp of facts (plain data) and of times in nanoseconds."""
    text = json.dumps([VERSION, facts, times])
    return Stamp(hashlib.sha256(text.encode()).hexdigest(), max(times, default=0))


def cache_folder(cache: Path | None) -> Path:
    """The folder `cache`, by default `$XDG_CACHE_HOME/seresnext` or `~/.cache/seresnext`, which is made.

    Raises DataError when there is no such folder and none can be made.
    """
    folder = cache
    try:
        if folder is None:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seresnext"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home.
        raise _no_cache(folder, error) from None
    return folder


def index_path(cache: Path | None, kind: str, root: Path, split: str) -> Path:
    """Where the index of a split is kept, in the folder that `cache_folder` gives; `stamped` completes the name."""
    where = hashlib.sha256(f"{kind}\0{root.resolve()}\0{split}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder(cache) / f"{kind}-{where[:32]}.index"


def stamped(path: Path, stamp: Stamp) -> Path:
    """The file of an index of data with this stamp, for a path of `index_path`."""
    return path.with_name(f"{path.stem}-{stamp.digest[:16]}{path.suffix}")


def _no_cache(folder: Path | None, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    place = folder or "the home folder"
    return DataError(
        f"the index of the data cannot be kept in {place}: {reason}; give a folder that can be written with data.cache"
    )


def open_or_build(path: Path, stamp: Callable[[], Stamp], build: Callable[[], Contents]) -> Index:
    """The index of data for a path of `index_path`; built first when there is none, a damaged one, or the data changed.

    One process builds, others wait for it. Raises DataError when the cache cannot be written, or when the data changes
    while it is looked at.
    """
    now = stamp()
    with suppress(NotAnIndex):
        return _open(path, now)
    with _locked(stamped(path, now)):
        before = stamp()
        # Another process may have built it in the meantime.
        try:
            return _open(path, before)
        except NotAnIndex as error:
            if stamped(path, before).exists():
                warn(f"{error}; it is built anew")
        if _is_fresh(before):
            # A change in the same tick of the clock would leave no trace.
            time.sleep(_tick(before) / 1e9)
            before = stamp()
        _sweep(path)
        contents = build()
        if stamp().digest != before.digest:
            raise DataError("the data changed while its index was built; start again when nothing writes to it")
        # Where there are no locks another process may have been first. Its file is in use, so it stays.
        with suppress(NotAnIndex):
            return _open(path, before)
        try:
            write_index(stamped(path, before), contents, before.digest)
        except OSError as error:
            raise _no_cache(path.parent, error) from None
        return Index.open(stamped(path, before))


def _open(path: Path, stamp: Stamp) -> Index:
    file = stamped(path, stamp)
    index = Index.open(file)
    if index.stamp != stamp.digest:
        raise NotAnIndex(f"{file} is of other data")
    # The time of the file says when it was last of use: access times are switched off on many disks.
    with suppress(OSError):
        if time.time() - file.stat().st_mtime > _USE_SECONDS:
            os.utime(file)
    return index


def _sweep(path: Path) -> None:
    """Remove what builds that were killed left behind, and what is of the same data as it was long ago.

    A build without locks may still be at work on a young file, and another machine use a young index.
    """
    for left in path.parent.glob(f"{path.stem}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > (_LEFT_SECONDS if left.suffix == ".tmp" else _UNUSED_SECONDS):
                left.unlink()


def _tick(stamp: Stamp) -> int:
    return _FINE_TICK_NS if stamp.newest % 1_000_000_000 else _COARSE_TICK_NS


def _is_fresh(stamp: Stamp) -> bool:
    return abs(time.time_ns() - stamp.newest) < _tick(stamp)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_suffix(".lock")
    try:
        lock.touch()  # In use: not to be swept away.
        file = lock.open("a")
    except OSError as error:
        raise _no_cache(path.parent, error) from None
    with file:
        # A network file system may have no locks: then each process builds its own, and the last to be renamed stays.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
