"""Stores of shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_folders import NAMES, SHARD_BYTES, Server, downloads, open_remote

from seresnext.data.readers.files import read_at
from seresnext.data.shards.reader import ShardReader
from seresnext.data.shards.store import LocalShards
from seresnext.errors import DataError


def test_bytes_of_a_file_are_read_at_the_offset(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    assert read_at(path, 50, 20) == bytes(range(50, 70))
    assert read_at(path, 190, 20) == bytes(range(190, 200))
    assert read_at(path, 500, 20) == b""


def test_a_folder_is_checked_when_it_is_opened_and_read_in_place(shard_root: Path):
    shards = ShardReader(str(shard_root), "train").manifest.shards
    folder = shard_root / "train"
    store = LocalShards(folder, shards)
    assert store.read(2, 512, 1000) == (folder / NAMES[2]).read_bytes()[512:1512]
    assert store.location(1) == str(folder / NAMES[1])
    assert not store.discard(1)
    (folder / NAMES[1]).unlink()
    with pytest.raises(DataError, match=rf"{NAMES[1]} cannot be read: No such file.*prepare shards"):
        LocalShards(folder, shards)


def test_a_damaged_copy_is_downloaded_again(shard_root: Path, server: Server, tmp_path: Path):
    reader = open_remote(server, tmp_path / "cache")
    good = reader.read(0)
    (path,) = (tmp_path / "cache" / "shards").glob("*.tar")
    path.write_bytes(bytes(SHARD_BYTES))
    assert reader.read(0) == good
    assert downloads(server)[0] == 2
