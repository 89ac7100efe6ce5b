"""Shards of a server that the next batches need, got before they need them by a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np

from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.shards.reader import ShardReader
from seresnext.data.shards.store import RemoteShards
from seresnext.errors import DataError
from seresnext.process.fork import FORK
from seresnext.process.signals import block_stop_signals, init_worker

_DOWNLOADS = 4
# The part of the cache that shards for batches to come may take; the rest is for those in use and for other splits.
_SHARE_OF_CACHE = 0.75
_LOOK_SECONDS = 0.05


@contextmanager
def prefetch_shards(reader: Reader, keys: Iterable[BatchKey]) -> Iterator[Iterable[BatchKey]]:
    """The same keys, while a process of its own gets the shards that they will need; it ends with the block.

    It goes ahead as far as the cache has room, and changes nothing but the time that batches take. Readers that need no
    server get their keys back.
    """
    if not isinstance(reader, ShardReader) or not isinstance(reader.store, RemoteShards) or sys.platform != "linux":
        yield keys
        return
    position = FORK.Value("q", 0, lock=False)
    # A fork copies the iterator of the keys as it stands: both sides go through all of them.
    process = FORK.Process(target=_run, args=(reader, reader.store, keys, position), daemon=True)
    with block_stop_signals():
        process.start()
    try:
        yield _counted(keys, position)
    finally:
        process.kill()
        process.join()


def _counted(keys: Iterable[BatchKey], position: Any) -> Iterator[BatchKey]:
    for number, key in enumerate(keys):
        position.value = number
        yield key


def _run(reader: ShardReader, store: RemoteShards, keys: Iterable[BatchKey], position: Synchronized) -> None:
    init_worker()
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        fetch_ahead(store, reader.shard_ids, keys, position, pool)


def fetch_ahead(
    store: RemoteShards, shard_ids: np.ndarray, keys: Iterable[BatchKey], position: Any, pool: ThreadPoolExecutor
) -> None:
    """Get the shards of the keys in their order, as far ahead of key number `position.value` as the cache has room.

    What cannot be got is left to the worker that needs it, which then says why.
    """
    bound = store.cache.limit * _SHARE_OF_CACHE
    last_use: dict[int, int] = {}  # Of each shard the number of the last key known to need it.
    running: dict[int, Future[None]] = {}
    for number, key in enumerate(keys):
        if number < position.value:
            continue  # Overtaken: to get what this batch had would push out what those to come need.
        needed = shard_ids[key.indices]
        _, first = np.unique(needed, return_index=True)
        for shard in needed[np.sort(first)].tolist():
            last_use[shard] = number
            file = store.shards[shard]
            if store.cache.has(file):
                store.cache.touch(file)
                continue
            while number > position.value and (len(running) >= _DOWNLOADS or _bytes(store, last_use) > bound):
                time.sleep(_LOOK_SECONDS)
                _forget(last_use, position.value)
                _collect(running)
            if shard not in running:
                running[shard] = pool.submit(store.cache.get, store.remote, file)


def _bytes(store: RemoteShards, shards: Iterable[int]) -> int:
    return sum(store.shards[shard].bytes for shard in shards)


def _forget(last_use: dict[int, int], position: int) -> None:
    for shard in [shard for shard, number in last_use.items() if number < position]:
        del last_use[shard]


def _collect(running: dict[int, Future[None]]) -> None:
    for shard in [shard for shard, future in running.items() if future.done()]:
        error = running.pop(shard).exception()
        assert error is None or isinstance(error, DataError), error
