"""Downloads from a server on this machine. Oracle: the bytes of the served file."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from shard_folders import Server, serve

from seresnext.weights import download as module
from seresnext.weights.download import download

CONTENT = np.random.default_rng(0).bytes(100_000)
NAME = f"model-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / NAME).write_bytes(CONTENT)
    with serve(tmp_path / "www") as server:
        yield server


def part(folder: Path) -> Path:
    return folder / f".{NAME}.part"


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert download(f"{server.url}/{NAME}", tmp_path / "cache").read_bytes() == CONTENT
    assert server.requests[NAME] == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [NAME]


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize(
    ("left", "starts"),
    [(CONTENT[:4000], [4000]), (b"of another file", [15, 0]), (CONTENT, []), (CONTENT + b"more", [0])],
    ids=["a part", "other content", "all", "too much"],
)
def test_what_an_interrupted_download_left_is_resumed(
    server: Server, tmp_path: Path, has_ranges: bool, left: bytes, starts: list[int]
) -> None:
    server.has_ranges = has_ranges
    part(tmp_path).write_bytes(left)
    assert download(f"{server.url}/{NAME}", tmp_path).read_bytes() == CONTENT
    assert server.starts == (starts if has_ranges else [0])


def test_a_broken_connection_is_resumed_at_once(server: Server, tmp_path: Path) -> None:
    server.has_ranges, server.cut[NAME] = True, 30_000
    assert download(f"{server.url}/{NAME}", tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, 30_000, 60_000, 90_000]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda server: server.cut.update({NAME: 30_000}), "the connection ended after 30,000 of 100,000 bytes"),
        (lambda server: server.replaced.update({NAME: b"x" + CONTENT[1:]}), "another SHA-256"),
    ],
)
def test_a_download_that_fails_leaves_no_file(server: Server, tmp_path: Path, fault, reason: str) -> None:
    fault(server)
    with pytest.raises(OSError, match=reason):
        download(f"{server.url}/{NAME}", tmp_path)
    assert not (tmp_path / NAME).exists()
    assert server.requests[NAME] <= 2


def test_too_much_content_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 50_000)
    monkeypatch.setattr(module, "_CHUNK", 10_000)
    with pytest.raises(OSError, match="ended after 50,000"):
        download(f"{server.url}/{NAME}", tmp_path)


@pytest.mark.parametrize("failures", [0, 1])
def test_of_several_processes_one_downloads(server: Server, tmp_path: Path, failures: int) -> None:
    """The lock belongs to an open file, so threads wait for each other as processes do. After a failure, one tries."""
    server.seconds, server.failures[NAME] = 0.3, failures

    def attempt(_: int) -> bool:
        try:
            return download(f"{server.url}/{NAME}", tmp_path).read_bytes() == CONTENT
        except OSError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(4))) == 4 - failures
    assert server.requests[NAME] == 1 + failures
    assert {path.name for path in tmp_path.iterdir()} == {"www", NAME}


def test_a_server_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="no answer"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}", tmp_path)
    # A name server that does not answer blocks without a timeout.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: threading.Event().wait(20) or [])
    with pytest.raises(TimeoutError, match="no answer"):
        download(f"http://host.invalid/{NAME}", tmp_path)
    assert time.monotonic() - start < 15
    monkeypatch.undo()
    with pytest.raises(OSError, match="404"):
        download(f"{server.url}/none-{NAME}", tmp_path)
