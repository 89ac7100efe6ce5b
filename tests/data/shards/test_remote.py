"""Shards of a server: a server on this machine that fails as told, and a stand-in for S3."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import until
from shard_folders import (
    NAMES,
    PER_SHARD,
    SHARD_BYTES,
    SHARDS,
    Server,
    copies,
    downloads,
    make_shards,
    open_remote,
    read_all,
)
from stand_in_s3 import stand_in_s3

from seresnext import remote
from seresnext.data.loading.loader import evaluation_keys, train_keys
from seresnext.data.order import Order
from seresnext.data.shards.format import MANIFEST
from seresnext.data.shards.reader import ShardReader
from seresnext.data.shards.remote import in_order_of_need
from seresnext.errors import DataError, Failure
from seresnext.process.signals import FORK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the copies in the cache."""
    return tmp_path / "cache" / "shards"


# ------------------------------------------------------------------------------------------------ failures


def test_a_server_that_fails_at_first_is_asked_again(server: Server, tmp_path: Path):
    server.failures = {NAMES[1]: remote.ATTEMPTS - 1, MANIFEST: 1}
    read_all(open_remote(server, tmp_path / "cache"))
    assert downloads(server) == [1, remote.ATTEMPTS, 1, 1]
    assert server.requests[MANIFEST] == 2


def fail(server: Server, status: int) -> None:
    server.failures, server.status = {NAMES[0]: 100}, status


def replace(server: Server, change: Callable[[bytes], bytes]) -> None:
    server.replaced = {NAMES[0]: change((server.folder / "train" / NAMES[0]).read_bytes())}


@pytest.mark.parametrize(
    ("harm", "attempts", "message"),
    [
        (lambda server: fail(server, 503), 5, "in 5 attempts: the server answers 503"),
        (lambda server: fail(server, 404), 1, "there is no such file; check data.root"),
        (lambda server: fail(server, 403), 1, "the server answers 403; check data.root and the credentials"),
        (lambda server: setattr(server, "cut", {NAMES[0]: 5000}), 5, "in 5 attempts: "),
        (lambda server: replace(server, lambda data: data[:-512]), 5, "the checksum of 40448 bytes is not the one"),
        (lambda server: replace(server, lambda data: b"x" + data[1:]), 5, "the checksum of 40960 bytes is not"),
        (lambda server: replace(server, lambda data: data + bytes(10**7)), 5, "the checksum of .* is not"),
    ],
    ids=["busy", "missing", "forbidden", "truncated", "shorter", "changed", "longer"],
)
def test_a_download_that_fails_is_an_error(
    server: Server, tmp_path: Path, harm: Callable[[Server], None], attempts: int, message: str
):
    """No part of the shard stays, and the reader can go on."""
    reader = open_remote(server, tmp_path / "cache")
    harm(server)
    with pytest.raises(DataError, match=f"{server.url}/train/{NAMES[0]} cannot be read.*{message}"):
        reader.read(0)
    assert downloads(server)[0] == attempts
    assert not [path for path in (tmp_path / "cache" / "shards").iterdir() if path.suffix in (".tar", ".part")]
    assert reader.read(PER_SHARD)
    server.failures, server.cut, server.replaced = {}, {}, {}
    assert reader.read(0)


def test_no_server_is_reported_with_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(DataError, match=f"{url}/train/index.json cannot be read, in 5 attempts: Cannot connect"):
            ShardReader(url, "train", tmp_path)


def read_at_once(reader: ShardReader) -> list[bytes | BaseException]:
    """Return the outcomes of four threads that read one image. Their locks are as separate as those of processes."""
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(reader.read, 0) for _ in range(4)]
        return [future.exception() or future.result() for future in futures]


def test_a_failed_download_is_the_error_of_all_that_wait(server: Server, tmp_path: Path):
    """Attempts of each, one after the other, would take longer than `runtime.loader_timeout`."""
    reader = open_remote(server, tmp_path / "cache")
    fail(server, 503)
    server.seconds = 0.1
    errors = read_at_once(reader)
    assert {type(error) for error in errors} == {DataError}
    assert {str(error) for error in errors} == {
        f"{server.url}/train/{NAMES[0]} cannot be read, in 5 attempts: the server answers 503; check the server"
    }
    assert downloads(server)[0] == remote.ATTEMPTS
    server.failures = {}
    assert reader.read(0)  # A later read does not believe the old error.


@pytest.mark.parametrize(("place", "reason"), [("/dev/full", "No space left"), ("/dev/full/x", "Not a directory")])
def test_a_disk_that_fails_is_named_at_once(server: Server, tmp_path: Path, folder: Path, place: str, reason: str):
    reader = open_remote(server, tmp_path / "cache")
    (folder / f"{reader.manifest.shards[0].sha256}.part").symlink_to(place)
    with pytest.raises(DataError, match=rf"cannot be kept in .*shards: {reason}.*; set data\.cache"):
        reader.read(0)
    assert downloads(server)[0] <= 1
    assert reader.read(0)  # Nothing of the failure stays.


# ------------------------------------------------------------------------------------------------ copies


def test_an_empty_and_a_full_cache_give_the_same(shard_root: Path, server: Server, tmp_path: Path):
    order = np.random.default_rng(0).permutation(SHARDS * PER_SHARD).tolist()
    local, reader = ShardReader(str(shard_root), "train"), open_remote(server, tmp_path / "cache")
    assert (local.has_local_files, reader.has_local_files) == (True, False)
    assert (reader.fingerprint, reader.classes) == (local.fingerprint, local.classes)
    assert reader.labels.tolist() == local.labels.tolist()
    expected = read_all(local, order)
    assert read_all(reader, order) == expected
    before = server.requests.total()
    assert read_all(reader, order) == expected
    assert read_all(open_remote(server, tmp_path / "cache"), order) == expected  # another run
    assert server.requests.total() == before + 1  # the manifest
    assert downloads(server) == [1] * SHARDS


def test_a_folder_that_cannot_be_used_is_refused(server: Server, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be kept in .*file.*data\.cache"):
        open_remote(server, tmp_path / "file")


def test_the_rest_of_a_killed_download_is_replaced(server: Server, tmp_path: Path, folder: Path):
    reader = open_remote(server, tmp_path / "cache")
    (folder / f"{reader.manifest.shards[0].sha256}.part").write_bytes(bytes(2 * SHARD_BYTES))
    assert read_all(reader) == read_all(ShardReader(str(server.folder), "train"))
    assert set(copies(tmp_path / "cache").values()) == {SHARD_BYTES}
    assert not [*folder.glob("*.part")]


def test_a_damaged_copy_is_downloaded_again(server: Server, tmp_path: Path, folder: Path):
    reader = open_remote(server, tmp_path / "cache")
    good = reader.read(0)
    (folder / f"{reader.manifest.shards[0].sha256}.tar").write_bytes(bytes(SHARD_BYTES))
    server.seconds = 0.1
    assert read_at_once(reader) == [good] * 4
    assert downloads(server)[0] == 2


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-5], lambda _: b""]
)
def test_a_damaged_copy_of_the_index_is_downloaded_again(server: Server, tmp_path: Path, folder: Path, capsys, harm):
    whole = (server.folder / "train" / "index.npy").read_bytes()
    open_remote(server, tmp_path / "cache")
    (path,) = folder.glob("*.npy")
    assert (path.read_bytes(), capsys.readouterr().err) == (whole, "")
    path.write_bytes(harm(whole))
    server.replaced = {"index.npy": whole[:-1]}
    with pytest.raises(DataError, match=r"train/index\.npy cannot be read.*the checksum of 575 bytes is not the one"):
        open_remote(server, tmp_path / "cache")
    server.replaced = {}
    for _ in range(2):
        assert len(open_remote(server, tmp_path / "cache")) == SHARDS * PER_SHARD
    assert path.read_bytes() == whole
    assert server.requests["index.npy"] == 2 + remote.ATTEMPTS
    assert capsys.readouterr().err == 2 * f"warning: {path} is damaged and is downloaded again\n"


def read_in_any_order(url: str, folder: Path, cache: Path, seed: int) -> None:
    reader, local = ShardReader(url, "train", cache), ShardReader(str(folder), "train")
    for index in np.random.default_rng(seed).integers(0, len(reader), 120).tolist():
        assert reader.read(index) == local.read(index)


def test_processes_share_a_cache(shard_root: Path, server: Server, tmp_path: Path):
    server.seconds = 0.1  # Downloads overlap.
    words = (server.url, shard_root, tmp_path / "cache")
    children = [FORK.Process(target=read_in_any_order, args=(*words, seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert downloads(server) == [1] * SHARDS


# ------------------------------------------------------------------------------------------------ ahead of use


def test_the_process_ends_with_the_block(server: Server, tmp_path: Path):
    opened = open_remote(server, tmp_path)
    server.seconds = 60
    started = time.monotonic()
    with opened.prefetch(evaluation_keys(24, 5, 0, 1)):
        until(lambda: sum(downloads(server)) > 0)
    assert time.monotonic() - started < 30


def test_shards_come_without_being_read_and_a_server_that_fails_leaves_the_message_to_who_reads(
    server: Server, tmp_path: Path
):
    reader = open_remote(server, tmp_path)
    server.failures = {NAMES[0]: 100}
    expected = [key.indices.tolist() for key in evaluation_keys(24, 5, 0, 1)]
    with reader.prefetch(evaluation_keys(24, 5, 0, 1)) as keys:
        until(lambda: downloads(server) == [remote.ATTEMPTS, 1, 1, 1])
        assert [key.indices.tolist() for key in keys] == expected


@pytest.mark.parametrize("start", [0, 2])
def test_shards_are_downloaded_in_the_order_of_need(server: Server, tmp_path: Path, start: int):
    """A step reads one shard; an epoch has four steps."""
    reader = open_remote(server, tmp_path)
    order = Order(24, 6, 6, seed=1, shard_ids=reader.shard_ids, shards_per_block=1)
    wanted = [int(reader.shard_ids[order.micro_batch(step, 0).indices[0]]) for step in range(start, 20)]
    assert wanted[:4] != sorted(wanted[:4])
    keys = train_keys(order, range(1), start, 20)
    assert list(in_order_of_need(reader.shard_ids, keys)) == list(dict.fromkeys(wanted))
    assert next(keys).step < 19  # The rest of a long run is not looked at.


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("https://ann:secret@host/x", "give credentials in the environment"),
        ("gopher://host/x", "gopher:// is an unknown kind of address"),
        ("https://host/x", r"has no aiohttp; run `pip install \"seresnext\[remote\]\"`"),
    ],
)
def test_an_address_that_nothing_can_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str, message: str):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(Failure, match=message):
        ShardReader(root, "train", tmp_path)


# ------------------------------------------------------------------------------------------------ S3


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The shards of a folder in the bucket `bucket` of a stand-in for S3, which the environment points to."""
    with stand_in_s3("bucket"):
        root = tmp_path_factory.mktemp("s3")
        make_shards(root)
        for path in (root / "train").iterdir():
            fsspec.filesystem("s3").put_file(str(path), f"bucket/some/prefix/train/{path.name}")
        yield root


def test_a_bucket_gives_what_the_folder_holds_and_the_cache_is_named_by_contents(
    s3: Path, server: Server, tmp_path: Path
):
    reader = ShardReader("s3://bucket/some/prefix", "train", tmp_path)
    local = ShardReader(str(s3), "train")
    assert read_all(reader) == read_all(local)
    assert reader.fingerprint == local.fingerprint
    assert len(copies(tmp_path)) == SHARDS
    assert read_all(ShardReader(server.url, "train", tmp_path)) == read_all(local)
    assert downloads(server) == [0] * SHARDS


def test_a_file_missing_in_a_bucket_is_reported(s3: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"s3://bucket/other/train/index\.json cannot be read: there is no such file"):
        ShardReader("s3://bucket/other", "train", tmp_path)
