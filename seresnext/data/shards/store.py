"""Where the bytes of shards come from: a folder, or a server through a cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from seresnext.data.readers.pread import open_regular, read_piece
from seresnext.data.shards.cache import ShardCache
from seresnext.data.shards.format import MOST_CLASSES, Shard, list_shard
from seresnext.data.shards.remote import Remote
from seresnext.errors import DataError


class ShardStore(Protocol):
    """Where the bytes of shards are."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, fewer where it ends. Raises DataError or OSError."""
        ...

    def renew(self, shard: int) -> bool:
        """Get a damaged shard again; False when there is nowhere to get it from."""
        ...

    def place(self, shard: int) -> str:
        """Path or address of a shard, for messages."""
        ...


class LocalShards:
    """Shards in a folder. Raises DataError when one is missing or has another size than its index says."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        # No pathlib: for a thousand shards it costs more than the looking.
        self._paths = tuple(f"{folder}/{shard.name}" for shard in shards)
        for path, shard in zip(self._paths, shards, strict=True):
            _check_file(path, shard)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard. No handle is kept: there may be more shards than a process may have files open."""
        return read_at(self._paths[shard], offset, size)

    def renew(self, shard: int) -> bool:
        """False: there is only this one."""
        return False

    def place(self, shard: int) -> str:
        """The path of a shard."""
        return self._paths[shard]


class RemoteShards:
    """Shards on a server, each got whole when it is first needed."""

    def __init__(self, remote: Remote, cache: ShardCache, shards: Sequence[Shard]) -> None:
        self.remote = remote
        self.cache = cache
        self.shards = tuple(shards)
        cache.check_room(shards, remote.place(""))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard."""
        return self.cache.read(self.remote, self.shards[shard], offset, size)

    def renew(self, shard: int) -> bool:
        """Throw away the local copy of a shard, so that the next read gets it again."""
        self.cache.drop(self.shards[shard])
        return True

    def place(self, shard: int) -> str:
        """The address of a shard."""
        return self.remote.place(self.shards[shard].name)


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, fewer where it ends. Raises OSError."""
    descriptor = open_regular(path)
    try:
        return read_piece(descriptor, offset, size)
    finally:
        os.close(descriptor)


def _check_file(path: str, shard: Shard) -> None:
    try:
        size = os.stat(path).st_size  # noqa: PTH116
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; get the shard again, or run scripts/prepare_shards.py with the "
            "same arguments again"
        ) from None
    if size != shard.bytes:
        # What is wrong with it may say more than a number.
        list_shard(Path(path), MOST_CLASSES)
        raise DataError(f"{path} has {size} bytes, and its index says {shard.bytes}; get the shard again")
