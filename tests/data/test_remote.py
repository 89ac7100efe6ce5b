"""Shards of a server: a server on this machine that fails as told, and a stand-in for S3."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shard_folders import Server, make_shards, serve

from seresnext.data import remote
from seresnext.data.readers.shards import MANIFEST, RemoteShards, ShardReader, check_cache
from seresnext.data.remote import Remote, shown_url
from seresnext.errors import DataError

SHARDS, PER_SHARD = 4, 6
SHARD_BYTES = 40_960  # Of each of the shards below: 6 images of 4 kB, rounded up to tar's records.
NAMES = [f"train-{number:05}.tar" for number in range(SHARDS)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_shards(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with serve(root) as running:
        yield running


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)


def open_remote(server: Server, cache: Path, shards: float = SHARDS) -> ShardReader:
    """A reader with room for so many shards."""
    return ShardReader(server.url, "train", cache, int(shards * SHARD_BYTES))


def read_all(reader: ShardReader, order: list[int] | None = None) -> list[bytes]:
    return [reader.read(i) for i in order or range(len(reader))]


def copies(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (cache / "shards").glob("*.tar")}


def downloads(server: Server) -> list[int]:
    return [server.requests[name] for name in NAMES]


# ------------------------------------------------------------------------------------------------ reading


def test_a_server_gives_what_the_folder_holds(root: Path, server: Server, tmp_path: Path):
    ours, theirs = open_remote(server, tmp_path / "cache"), ShardReader(str(root), "train")
    assert (ours.fingerprint, ours.classes, ours.labels.tolist()) == (
        theirs.fingerprint,
        theirs.classes,
        theirs.labels.tolist(),
    )
    assert read_all(ours) == read_all(theirs)
    assert downloads(server) == [1] * SHARDS
    assert {(root / "train" / name).stat().st_size for name in NAMES} == {SHARD_BYTES}


@pytest.mark.parametrize("room", [1, 2, SHARDS])
def test_a_cold_and_a_warm_cache_of_any_size_give_the_same(root: Path, server: Server, tmp_path: Path, room: int):
    order = np.random.default_rng(0).permutation(SHARDS * PER_SHARD).tolist()
    expected = read_all(ShardReader(str(root), "train"), order)
    reader = open_remote(server, tmp_path / "cache", room)
    assert read_all(reader, order) == expected  # cold
    before = server.requests.total()
    assert read_all(reader, order) == expected  # warm
    assert read_all(open_remote(server, tmp_path / "cache", room), order) == expected  # another run
    assert (server.requests.total() == before + 1) is (room == SHARDS)  # With room for all only the manifest again.


# ------------------------------------------------------------------------------------------------ room


def test_the_cache_keeps_to_its_size_and_drops_what_was_unused_longest(server: Server, tmp_path: Path):
    cache = tmp_path / "cache"
    reader = open_remote(server, cache, 2.9)
    assert isinstance(reader.store, RemoteShards)
    shard_of = [shard.sha256 + ".tar" for shard in reader.store.shards]
    for step, (shard, kept) in enumerate([(0, {0}), (1, {0, 1}), (0, {0, 1}), (2, {0, 2}), (3, {2, 3})]):
        reader.read(shard * PER_SHARD)
        os.utime(cache / "shards" / shard_of[shard], (step, step))  # Time stamps need not differ within a test.
        assert set(copies(cache)) == {shard_of[number] for number in kept}
        assert sum(copies(cache).values()) <= 2.9 * SHARD_BYTES


def test_without_a_bound_more_is_kept(server: Server, tmp_path: Path):
    read_all(open_remote(server, tmp_path / "cache", 100))
    assert len(copies(tmp_path / "cache")) == SHARDS


def test_a_shard_in_use_is_not_removed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader = open_remote(server, tmp_path / "cache", 2)
    assert isinstance(reader.store, RemoteShards)
    read_all(reader, [0, PER_SHARD])
    used, free = (tmp_path / "cache" / "shards" / f"{shard.sha256}.tar" for shard in reader.store.shards[:2])
    os.utime(used, (1, 1))  # Its turn to go, were it not in use.
    with used.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        reader.read(2 * PER_SHARD)
        assert (used.exists(), free.exists()) == (True, False)
        reader.read(3 * PER_SHARD)
        assert used.exists()
    reader.read(PER_SHARD)
    assert not used.exists()


def test_no_room_at_all_is_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "_ROOM_SECONDS", 0.2)
    reader = open_remote(server, tmp_path / "cache", 1)
    reader.read(0)
    with next((tmp_path / "cache" / "shards").glob("*.tar")).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(DataError, match=r"had no room for a shard.*raise data\.cache_size"):
            reader.read(PER_SHARD)


def test_a_cache_smaller_than_a_shard_is_refused(server: Server, tmp_path: Path):
    with pytest.raises(DataError, match=r"the largest shard has 40960 bytes, and data\.cache_size is 20480 bytes"):
        open_remote(server, tmp_path / "cache", 0.5)


def test_an_order_that_the_cache_cannot_serve_is_refused(server: Server, tmp_path: Path):
    reader = open_remote(server, tmp_path / "cache", 3)
    with pytest.raises(DataError, match=r"raise data\.cache_size to 0\.1, or set data\.shuffle_shards to 1 or less"):
        check_cache(reader, None)
    with pytest.raises(DataError, match=r"data\.shuffle_shards 2 needs room for twice as many"):
        check_cache(reader, 2)
    check_cache(reader, 1)
    check_cache(open_remote(server, tmp_path / "cache", SHARDS), None)


def test_a_cache_that_cannot_be_written_is_told(server: Server, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be kept in .*file.*data\.cache"):
        open_remote(server, tmp_path / "file")


def test_what_a_killed_download_left_is_cleared_away(server: Server, tmp_path: Path):
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    left = folder / f"{'0' * 64}.{3 * SHARD_BYTES}.part"
    left.touch()
    own = folder / f"{ShardReader(str(server.folder), 'train').manifest.shards[0].sha256}.{SHARD_BYTES}.part"
    own.write_bytes(b"half")
    reader = open_remote(server, tmp_path / "cache", 2)
    read_all(reader)
    assert not list(folder.glob("*.part"))


def test_a_download_in_progress_counts(server: Server, tmp_path: Path):
    reader = open_remote(server, tmp_path / "cache", 3)
    folder = tmp_path / "cache" / "shards"
    (folder / f"{'0' * 64}.{2 * SHARD_BYTES}.part").touch()
    with (folder / f"{'0' * 64}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        read_all(reader)
        assert sum(copies(tmp_path / "cache").values()) == SHARD_BYTES


def test_a_damaged_copy_is_got_again(root: Path, server: Server, tmp_path: Path):
    reader = open_remote(server, tmp_path / "cache")
    good = reader.read(0)
    (path,) = (tmp_path / "cache" / "shards").glob("*.tar")
    path.write_bytes(bytes(SHARD_BYTES))
    assert reader.read(0) == good
    assert downloads(server)[0] == 2


# ------------------------------------------------------------------------------------------------ several processes


CHILD = """
import hashlib, sys
from pathlib import Path
import numpy as np
from seresnext.data.readers.shards import ShardReader

url, cache, room, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
reader = ShardReader(url, "train", cache, room)
for index in np.random.default_rng(seed).integers(0, len(reader), 120).tolist():
    digest = hashlib.sha256(reader.read(index)).hexdigest()
    taken = 0
    for path in (cache / "shards").glob("*.tar"):
        try:
            taken += path.stat().st_size
        except FileNotFoundError:
            continue
    print(index, digest, taken)
"""


@pytest.mark.parametrize("room", [2, SHARDS])
def test_processes_share_a_cache(root: Path, server: Server, tmp_path: Path, room: int):
    expected = [hashlib.sha256(data).hexdigest() for data in read_all(ShardReader(str(root), "train"))]
    server.seconds = 0.01  # So that downloads overlap.
    command = [sys.executable, "-c", CHILD, server.url, str(tmp_path / "cache"), str(room * SHARD_BYTES)]
    children = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(2)]
    for child in children:
        lines = [line.split() for line in child.communicate(timeout=60)[0].splitlines()]
        assert child.returncode == 0
        assert len(lines) == 120
        assert all(digest == expected[int(index)] for index, digest, _ in lines)
        assert max(int(taken) for _, _, taken in lines) <= room * SHARD_BYTES
    if room == SHARDS:
        assert downloads(server) == [1] * SHARDS
    else:
        assert sum(downloads(server)) > SHARDS


# ------------------------------------------------------------------------------------------------ failures


def test_a_server_that_fails_at_first_is_asked_again(server: Server, tmp_path: Path):
    server.failures = {NAMES[1]: remote.ATTEMPTS - 1, MANIFEST: 1}
    read_all(open_remote(server, tmp_path / "cache"))
    assert downloads(server) == [1, remote.ATTEMPTS, 1, 1]
    assert server.requests[MANIFEST] == 2


def test_a_server_that_goes_on_failing_is_given_up(server: Server, tmp_path: Path):
    reader = open_remote(server, tmp_path / "cache")
    server.failures = {NAMES[1]: 100}
    with pytest.raises(DataError) as caught:
        reader.read(PER_SHARD)
    assert f"{server.url}/train/{NAMES[1]} cannot be read, also at the 5th attempt: the server answers 503" in str(
        caught.value
    )
    assert downloads(server)[1] == remote.ATTEMPTS
    reader.read(0)
    assert len(copies(tmp_path / "cache")) == 1


@pytest.mark.parametrize(("status", "answer"), [(404, "there is no such file"), (403, "the server answers 403")])
def test_an_answer_that_is_final_is_not_asked_for_again(server: Server, tmp_path: Path, status: int, answer: str):
    reader = open_remote(server, tmp_path / "cache")
    server.failures, server.status = {NAMES[0]: 100}, status
    with pytest.raises(DataError, match=f"{NAMES[0]} cannot be read: {answer}"):
        reader.read(0)
    assert downloads(server)[0] == 1


def test_no_server_is_told_with_the_address(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            DataError, match=f"{url}/train/index.json cannot be read, also at the 5th .*: Cannot connect"
        ):
            ShardReader(url, "train", tmp_path, 10**6)


def test_a_truncated_download_is_refused_and_got_again(server: Server, tmp_path: Path):
    reader = open_remote(server, tmp_path / "cache")
    server.cut = {NAMES[0]: 5000}
    with pytest.raises(DataError, match=f"{NAMES[0]} cannot be read, also at the 5th attempt: "):
        reader.read(0)
    assert downloads(server)[0] == remote.ATTEMPTS
    assert copies(tmp_path / "cache") == {}
    assert not list((tmp_path / "cache" / "shards").glob("*.part"))
    server.cut = {}
    assert reader.read(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-512], "40448 bytes came instead of 40960"),
        (lambda data: data + bytes(10**7), "bytes came instead of 40960"),
        (lambda data: b"x" + data[1:], "its checksum is another than its index says"),
    ],
)
def test_another_content_is_refused(root: Path, server: Server, tmp_path: Path, change, message: str):
    reader = open_remote(server, tmp_path / "cache")
    server.replaced = {NAMES[0]: change((root / "train" / NAMES[0]).read_bytes())}
    with pytest.raises(DataError, match=message):
        reader.read(0)
    assert copies(tmp_path / "cache") == {}


def test_a_damaged_index_is_refused(root: Path, server: Server, tmp_path: Path):
    server.replaced = {"index.npy": (root / "train" / "index.npy").read_bytes()[:-1] + b"x"}
    with pytest.raises(DataError, match=r"index\.npy cannot be read.*checksum"):
        open_remote(server, tmp_path / "cache")


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize("root", ["https://ann:secret@host/x", "https://host/x?token=secret", "s3://k:secret@b/x"])
def test_credentials_in_an_address_are_refused_and_not_shown(root: str):
    with pytest.raises(DataError, match="give credentials through the environment") as caught:
        Remote(root, "train")
    assert "secret" not in str(caught.value)
    assert "secret" not in shown_url(root)


def test_what_a_library_says_is_shown_without_addresses():
    error = OSError("no answer from https://ann:secret@host/x?token=secret today")
    assert remote._reason(error) == "no answer from (address) today"


def test_an_unknown_kind_of_address_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"gopher:// is no kind of address that is known"):
        ShardReader("gopher://host/x", "train", tmp_path, 10**6)


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(DataError, match=r"needs the extra `remote`.*pip install"):
        ShardReader("https://host/x", "train", tmp_path, 10**6)


# ------------------------------------------------------------------------------------------------ S3


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The shards of a folder in the bucket `bucket` of a stand-in for S3, which the environment points to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "testing")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_CONFIG_FILE", "/dev/null")
            deadline = time.monotonic() + 60
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            root = tmp_path_factory.mktemp("s3")
            make_shards(root)
            _upload(root)
            yield root
    finally:
        process.kill()
        process.wait()


def _upload(root: Path) -> None:
    import fsspec

    s3 = fsspec.filesystem("s3")
    s3.mkdir("bucket")
    for path in (root / "train").iterdir():
        s3.put_file(str(path), f"bucket/some/prefix/train/{path.name}")


def test_a_bucket_gives_what_the_folder_holds(s3: Path, tmp_path: Path):
    reader = ShardReader("s3://bucket/some/prefix", "train", tmp_path, 2 * SHARD_BYTES)
    local = ShardReader(str(s3), "train")
    assert read_all(reader) == read_all(local)
    assert reader.fingerprint == local.fingerprint
    assert len(copies(tmp_path)) == 2


def test_a_file_that_a_bucket_has_not_is_told(s3: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"s3://bucket/other/train/index\.json cannot be read: there is no such file"):
        ShardReader("s3://bucket/other", "train", tmp_path, 10**6)


def test_the_cache_is_named_by_contents(s3: Path, server: Server, tmp_path: Path):
    read_all(ShardReader("s3://bucket/some/prefix", "train", tmp_path, 10**6))
    read_all(ShardReader(server.url, "train", tmp_path, 10**6))
    assert downloads(server) == [0] * SHARDS
