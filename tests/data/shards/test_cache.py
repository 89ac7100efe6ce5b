"""Copies of a server's shards: how many, which, and shared by processes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
from launcher import PYTHON
from shard_folders import PER_SHARD, SHARD_BYTES, SHARDS, Server, copies, downloads, open_remote, read_all

from seresnext.data.shards import cache, remote
from seresnext.data.shards.reader import ShardReader
from seresnext.errors import DataError


def names_of(server: Server) -> list[str]:
    """The names of the copies of all shards, by number."""
    return [f"{shard.sha256}.tar" for shard in ShardReader(str(server.folder), "train").manifest.shards]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the copies in the cache."""
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("room", [1, 2, SHARDS])
def test_a_cold_and_a_warm_cache_of_any_size_give_the_same(shard_root: Path, server: Server, tmp_path: Path, room: int):
    order = np.random.default_rng(0).permutation(SHARDS * PER_SHARD).tolist()
    local, reader = ShardReader(str(shard_root), "train"), open_remote(server, tmp_path / "cache", room)
    assert (local.has_local_files, reader.has_local_files) == (True, False)
    assert (reader.fingerprint, reader.classes) == (local.fingerprint, local.classes)
    assert reader.labels.tolist() == local.labels.tolist()
    expected = read_all(local, order)
    assert read_all(reader, order) == expected  # cold
    before = server.requests.total()
    assert read_all(reader, order) == expected  # warm
    assert read_all(open_remote(server, tmp_path / "cache", room), order) == expected  # another run
    assert (server.requests.total() == before + 1) is (room == SHARDS)  # With room for all only the manifest again.
    assert (downloads(server) == [1] * SHARDS) is (room == SHARDS)


def test_the_cache_keeps_its_size_and_drops_the_least_recently_used(server: Server, tmp_path: Path, folder: Path):
    reader, names = open_remote(server, tmp_path / "cache", 2.9), names_of(server)
    for step, (shard, kept) in enumerate([(0, {0}), (1, {0, 1}), (0, {0, 1}), (2, {0, 2}), (3, {2, 3})]):
        reader.read(shard * PER_SHARD)
        os.utime(folder / names[shard], (step, step))  # Time stamps need not differ within a test.
        assert set(copies(tmp_path / "cache")) == {names[number] for number in kept}
        assert sum(copies(tmp_path / "cache").values()) <= 2.9 * SHARD_BYTES


def test_a_shard_in_use_is_not_removed(server: Server, tmp_path: Path, folder: Path):
    reader = open_remote(server, tmp_path / "cache", 2)
    read_all(reader, [0, PER_SHARD])
    used, free = (folder / name for name in names_of(server)[:2])
    os.utime(used, (1, 1))  # The copy would be removed next if it were not in use.
    with used.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        reader.read(2 * PER_SHARD)
        assert (used.exists(), free.exists()) == (True, False)
        reader.read(3 * PER_SHARD)
        assert used.exists()
    reader.read(PER_SHARD)
    assert not used.exists()


def test_no_room_at_all_is_reported(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "_ROOM_SECONDS", 0.2)
    reader = open_remote(server, tmp_path / "cache", 1)
    reader.read(0)
    with (tmp_path / "cache" / "shards" / names_of(server)[0]).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(DataError, match=r"had no room for a shard.*raise data\.cache_size"):
            reader.read(PER_SHARD)


def test_a_cache_that_cannot_be_used_is_refused(server: Server, tmp_path: Path):
    with pytest.raises(DataError, match=r"a shard has 40960 bytes; raise data\.cache_size, now 20480"):
        open_remote(server, tmp_path / "cache", 0.5)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be kept in .*file.*data\.cache"):
        open_remote(server, tmp_path / "file")


def test_a_download_counts_while_it_lasts(server: Server, tmp_path: Path, folder: Path):
    """A file of two shards leaves room for one. If the writer was killed, nobody holds the lock, and the file goes."""
    part, own = folder / f"{'0' * 64}.part", folder / names_of(server)[0].replace(".tar", ".part")
    own.write_bytes(b"half")
    with part.open("w") as file:
        file.truncate(2 * SHARD_BYTES)
        fcntl.flock(file, fcntl.LOCK_EX)
        read_all(open_remote(server, tmp_path / "cache", 3))
        assert sum(copies(tmp_path / "cache").values()) == SHARD_BYTES
        assert (part.exists(), own.exists()) == (True, False)
    os.utime(part, (1, 1))
    read_all(open_remote(server, tmp_path / "cache", 3))
    assert sum(copies(tmp_path / "cache").values()) == 3 * SHARD_BYTES
    assert not part.exists()


def test_a_download_that_has_ended_is_not_counted_as_removed(tmp_path: Path):
    """The name of a download is gone as soon as the file is a copy."""
    assert not cache._remove_unless_used(tmp_path / "x.part")
    assert cache._remove_unless_used(tmp_path / "x.tar")


def test_a_damaged_copy_is_downloaded_again(server: Server, tmp_path: Path, folder: Path):
    reader = open_remote(server, tmp_path / "cache")
    good = reader.read(0)
    (folder / names_of(server)[0]).write_bytes(bytes(SHARD_BYTES))
    assert reader.read(0) == good
    assert downloads(server)[0] == 2


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-5], lambda _: b""]
)
def test_a_damaged_copy_of_the_index_is_downloaded_again(server: Server, tmp_path: Path, folder: Path, capsys, harm):
    whole = (server.folder / "train" / "index.npy").read_bytes()
    open_remote(server, tmp_path / "cache")
    (path,) = folder.glob("*-index.npy")
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
    warning = f"warning: {path} is damaged (another checksum) and is downloaded again\n"
    assert capsys.readouterr().err == 2 * warning


CHILD = """
import contextlib, sys
from pathlib import Path
import numpy as np
from seresnext.data.shards.reader import ShardReader

url, folder, cache, room, seed = sys.argv[1:]
reader, local = ShardReader(url, "train", Path(cache), int(room)), ShardReader(folder, "train")
for index in np.random.default_rng(int(seed)).integers(0, len(reader), 120).tolist():
    assert reader.read(index) == local.read(index)
    taken = 0
    for path in Path(cache).glob("shards/*.tar"):
        with contextlib.suppress(FileNotFoundError):
            taken += path.stat().st_size
    assert 0 < taken <= int(room)
"""


@pytest.mark.parametrize("room", [2, pytest.param(SHARDS, marks=pytest.mark.full)])
def test_processes_share_a_cache(shard_root: Path, server: Server, tmp_path: Path, start_command, room: int):
    server.seconds = 0.01  # Downloads overlap.
    (tmp_path / "child.py").write_text(CHILD)
    words = [PYTHON, tmp_path / "child.py", server.url, shard_root, tmp_path / "cache", room * SHARD_BYTES]
    for child in [start_command([*words, seed]) for seed in range(2)]:
        result = child.finish(60)
        assert result.returncode == 0, result.output
    if room == SHARDS:
        assert downloads(server) == [1] * SHARDS
    else:
        assert sum(downloads(server)) > SHARDS
