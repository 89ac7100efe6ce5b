"""Stores of shards: a local folder, or a server behind a cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from seresnext.data.readers.files import read_at
from seresnext.data.shards.cache import ShardCache
from seresnext.data.shards.format import MOST_CLASSES, Shard, list_shard
from seresnext.data.shards.remote import Remote
from seresnext.errors import DataError


class ShardStore(Protocol):
    """Reads shards by number."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return bytes of a shard, fewer at the end. Raises DataError or OSError."""
        ...

    def discard(self, shard: int) -> bool:
        """Remove a damaged copy, so that the next read downloads the shard. Return False without a server."""
        ...

    def location(self, shard: int) -> str:
        """Return the path or address of a shard, for messages."""
        ...


class LocalShards:
    """Shards in a folder. Raises DataError for a missing shard, and for one with another size than in the index."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        # Without pathlib, which takes longer than the check of a thousand shards.
        self._paths = tuple(f"{folder}/{shard.name}" for shard in shards)
        for path, shard in zip(self._paths, shards, strict=True):
            _check_file(path, shard)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return bytes of a shard. The file is closed again: a process may not open all shards at once."""
        return read_at(self._paths[shard], offset, size)

    def discard(self, shard: int) -> bool:
        """Return False, because there is no other copy."""
        return False

    def location(self, shard: int) -> str:
        """Return the path of a shard."""
        return self._paths[shard]


class RemoteShards:
    """Shards on a server. The first read of a shard downloads the whole shard."""

    def __init__(self, remote: Remote, cache: ShardCache, shards: Sequence[Shard]) -> None:
        self.remote = remote
        self.cache = cache
        self.shards = tuple(shards)
        cache.check_room(shards, remote.address(""))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return bytes of a shard."""
        return self.cache.read(self.remote, self.shards[shard], offset, size)

    def discard(self, shard: int) -> bool:
        """Remove the local copy of a shard, and return True."""
        self.cache.drop(self.shards[shard])
        return True

    def location(self, shard: int) -> str:
        """Return the address of a shard."""
        return self.remote.address(self.shards[shard].name)


def _check_file(path: str, shard: Shard) -> None:
    try:
        size = os.stat(path).st_size  # noqa: PTH116
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; get the shard again, or run seresnext prepare shards with the "
            "same arguments again"
        ) from None
    if size != shard.bytes:
        # The listing may find the cause, and raise a better message.
        list_shard(Path(path), MOST_CLASSES)
        raise DataError(f"{path} has {size} bytes, in the index {shard.bytes}; get the shard again")
