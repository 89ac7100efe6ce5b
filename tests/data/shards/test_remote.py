"""Shards of a server: a server on this machine that fails as told, and a stand-in for S3."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
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

from seresnext.data.shards import remote
from seresnext.data.shards.cache import RemoteShards
from seresnext.data.shards.format import MANIFEST
from seresnext.data.shards.reader import ShardReader
from seresnext.data.shards.remote import Remote
from seresnext.errors import DataError
from seresnext.remote import shown_url

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
        (lambda server: fail(server, 503), 5, "in 5 attempts and .*: the server answers 503"),
        (lambda server: fail(server, 404), 1, "there is no such file; check data.root"),
        (lambda server: fail(server, 403), 1, "the server answers 403; check data.root and the credentials"),
        (lambda server: setattr(server, "cut", {NAMES[0]: 5000}), 5, "in 5 attempts and "),
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


def test_no_attempt_begins_after_the_limit_of_the_loader(server: Server, tmp_path: Path, monkeypatch):
    """The message has the answer of the server, not a hanging worker."""
    reader = open_remote(server, tmp_path / "cache")
    fail(server, 503)
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    with pytest.raises(DataError, match=r"cannot be read, in 1 attempts and .*the server answers 503"):
        reader.read(0)
    assert downloads(server)[0] == 1


def test_no_server_is_reported_with_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(DataError, match=f"{url}/train/index.json cannot be read, in 5 attempts .*: Cannot connect"):
            ShardReader(url, "train", tmp_path, 10**6)


def test_a_disk_that_is_full_is_not_waited_for(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader = open_remote(server, tmp_path / "cache")
    full = open("/dev/full", "wb")  # noqa: PTH123, SIM115
    monkeypatch.setattr(RemoteShards, "_reserve", lambda *_: full)
    with pytest.raises(DataError, match=r"the copy cannot be written to .*: No space left on device"):
        reader.read(0)
    assert downloads(server)[0] == 1


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize("root", ["https://ann:secret@host/x", "https://host/x?token=secret", "s3://k:secret@b/x"])
def test_credentials_in_an_address_are_refused_and_not_shown(root: str):
    with pytest.raises(DataError, match="give credentials in the environment") as caught:
        Remote(root, "train")
    assert "secret" not in str(caught.value)
    assert "secret" not in shown_url(root)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("gopher://host/x", "gopher:// is an unknown kind of address"),
        ("https://host/x", "needs the extra `remote`.*pip install"),
    ],
)
def test_an_address_that_nothing_can_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str, message: str):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(DataError, match=message):
        ShardReader(root, "train", tmp_path, 10**6)


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


def test_a_bucket_gives_what_the_folder_holds(s3: Path, tmp_path: Path):
    reader = ShardReader("s3://bucket/some/prefix", "train", tmp_path, 2 * SHARD_BYTES)
    local = ShardReader(str(s3), "train")
    assert read_all(reader) == read_all(local)
    assert reader.fingerprint == local.fingerprint
    assert len(copies(tmp_path)) == 2


def test_a_file_missing_in_a_bucket_is_reported(s3: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"s3://bucket/other/train/index\.json cannot be read: there is no such file"):
        ShardReader("s3://bucket/other", "train", tmp_path, 10**6)


def test_the_cache_is_named_by_contents(s3: Path, server: Server, tmp_path: Path):
    read_all(ShardReader("s3://bucket/some/prefix", "train", tmp_path, 10**6))
    read_all(ShardReader(server.url, "train", tmp_path, 10**6))
    assert downloads(server) == [0] * SHARDS
