"""Shards are downloaded before use, as far ahead as the cache has room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from shard_folders import SHARD_BYTES, Server, make_shards, serve

from seresnext.data.loading.loader import evaluation_keys, train_keys
from seresnext.data.order import Order, block_shuffle
from seresnext.data.shards import readahead, remote
from seresnext.data.shards.cache import RemoteShards
from seresnext.data.shards.readahead import fetch_ahead
from seresnext.data.shards.reader import ShardReader

SHARDS, PER_SHARD = 8, 6


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    make_shards(tmp_path / "data", shards=SHARDS)
    with serve(tmp_path / "data") as running:
        yield running


@pytest.fixture
def reader(server: Server, tmp_path: Path) -> Callable[[float], ShardReader]:
    return lambda shards: ShardReader(server.url, "train", tmp_path / "cache", int(shards * SHARD_BYTES))


def got(server: Server) -> list[int]:
    """Numbers of the shards that were asked for, in the order of the first time."""
    return [int(name[6:11]) for name in server.requests if name.endswith(".tar")]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_shards_come_without_being_read_and_keys_stay_the_same(server: Server, reader):
    expected = [key.indices.tolist() for key in evaluation_keys(48, 5, 0, 1)]
    with reader(20).prefetch(evaluation_keys(48, 5, 0, 1)) as keys:
        until(lambda: len(got(server)) == SHARDS)
        assert [key.indices.tolist() for key in keys] == expected
    assert max(server.requests.values()) == 1


def test_downloads_stop_when_the_cache_is_full(server: Server, reader):
    with reader(4).prefetch(evaluation_keys(48, 6, 0, 1)) as keys:  # A key, a shard; 3 of 4 may be ahead.
        iterator = iter(keys)
        until(lambda: len(got(server)) == 3)
        time.sleep(0.5)
        assert sorted(got(server)) == [0, 1, 2]
        for ahead in range(1, 4):
            next(iterator)  # The first key is number 0, the start position.
            until(lambda ahead=ahead: len(got(server)) >= min(ahead + 2, SHARDS))
        time.sleep(0.5)
        assert len(got(server)) == 5


def test_the_process_ends_with_the_block(server: Server, reader):
    opened = reader(20)
    server.seconds = 5
    started = time.monotonic()
    with opened.prefetch(evaluation_keys(48, 5, 0, 1)):
        until(lambda: len(got(server)) > 0)
    assert time.monotonic() - started < 4


def test_a_server_that_fails_leaves_the_message_to_who_reads(server: Server, reader, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    server.failures = {"train-00000.tar": 100}
    with reader(20).prefetch(evaluation_keys(48, 5, 0, 1)) as keys:
        until(lambda: len(got(server)) == SHARDS)
        assert len(list(keys)) == 10


def test_local_shards_need_none(tmp_path: Path):
    make_shards(tmp_path)
    keys = evaluation_keys(24, 5, 0, 1)
    with ShardReader(str(tmp_path), "train").prefetch(keys) as same:
        assert same is keys


def test_shards_are_downloaded_in_the_order_of_need(server: Server, reader):
    opened = reader(20)
    assert isinstance(opened.store, RemoteShards)
    order = Order(48, 6, 6, seed=1, blocks=block_shuffle(opened.shard_ids, 1))
    with ThreadPoolExecutor(1) as pool:
        position = SimpleNamespace(value=0)
        fetch_ahead(opened.store, opened.shard_ids, train_keys(order, range(1), 3, 8), position, pool)
    wanted = [int(opened.shard_ids[order.micro_batch(step, 0).indices[0]]) for step in range(3, 8)]
    assert got(server) == wanted
    assert len(set(wanted)) == 5


@pytest.mark.parametrize("room", [5, SHARDS])
def test_a_run_through_a_small_cache_reads_every_shard_once_an_epoch(server: Server, reader, room: int, monkeypatch):
    """With blocks of two shards and room for two blocks: the promise of data.shuffle_shards."""
    # The test reads a shard in milliseconds, so positions need short intervals.
    monkeypatch.setattr(readahead, "_LOOK_SECONDS", 0.0005)
    opened = reader(room)
    order = Order(48, 6, 6, seed=0, blocks=block_shuffle(opened.shard_ids, 2))
    local = ShardReader(str(server.folder), "train")
    with opened.prefetch(train_keys(order, range(1), 0, 16)) as keys:
        for key in keys:
            time.sleep(0.02)  # A step: without any, the trainer would overtake who looks ahead.
            for index in key.indices.tolist():
                assert opened.read(index) == local.read(index)
    requests = [server.requests[shard.name] for shard in opened.manifest.shards]
    assert np.max(requests) <= (2 if room < SHARDS else 1)
