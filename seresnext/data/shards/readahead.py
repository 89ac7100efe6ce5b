"""Downloads of a server's shards ahead of use, in a separate process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np

from seresnext.data.order import BatchKey
from seresnext.data.shards.cache import RemoteShards
from seresnext.process.fork import FORK
from seresnext.process.signals import block_stop_signals, init_worker

_DOWNLOADS = 4
# The share of the cache for shards of later batches. The rest is for shards in use, and for other splits.
_SHARE_OF_CACHE = 0.75
_LOOK_SECONDS = 0.05


@contextmanager
def prefetch_shards(
    store: RemoteShards, shard_ids: np.ndarray, keys: Iterable[BatchKey]
) -> Iterator[Iterable[BatchKey]]:
    """Yield the same keys. Until the end of the block, a process downloads the shards of later keys.

    `shard_ids` (int N) has the shard number of each image. The process downloads as far ahead as the cache has room.
    """
    position = FORK.Value("q", 0, lock=False)

    def counted() -> Iterator[BatchKey]:
        for number, key in enumerate(keys):
            position.value = number
            yield key

    # A fork copies the iterator of the keys, so both processes see all keys.
    process = FORK.Process(target=_run, args=(store, shard_ids, keys, position), daemon=True)
    with block_stop_signals():
        process.start()
    try:
        yield counted()
    finally:
        process.kill()
        process.join()


def _run(store: RemoteShards, shard_ids: np.ndarray, keys: Iterable[BatchKey], position: Synchronized) -> None:
    init_worker()
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        fetch_ahead(store, shard_ids, keys, position, pool)


def fetch_ahead(
    store: RemoteShards, shard_ids: np.ndarray, keys: Iterable[BatchKey], position: Any, pool: ThreadPoolExecutor
) -> None:
    """Download the shards of the keys, in order, as far ahead of key number `position.value` as the cache has room.

    A failed download is left to the worker that needs the shard, and that worker raises the error.
    """
    bound = store.limit * _SHARE_OF_CACHE
    last_use: dict[int, int] = {}  # For each shard, the number of the last known key with this shard.
    running: dict[int, Future[None]] = {}
    for number, key in enumerate(keys):
        if number < position.value:
            continue  # The batch is made already. A download would remove shards of later batches.
        needed = shard_ids[key.indices]
        _, first = np.unique(needed, return_index=True)
        for shard in needed[np.sort(first)].tolist():
            last_use[shard] = number
            if store.touch(shard):
                continue
            while number > position.value and (
                len(running) >= _DOWNLOADS or sum(store.shards[each].bytes for each in last_use) > bound
            ):
                time.sleep(_LOOK_SECONDS)
                last_use = {each: last for each, last in last_use.items() if last >= position.value}
                running = {each: download for each, download in running.items() if not download.done()}
            if shard not in running:
                running[shard] = pool.submit(store.fetch, shard)
