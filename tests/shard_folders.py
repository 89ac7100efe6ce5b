"""Shards for tests, and a server for shards that can fail on request."""

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from imagenet_archives import tar

from seresnext.data.shards.reader import ShardReader
from seresnext.prepare.shards import index_existing


def images(count: int, size: int, seed: int = 0) -> list[bytes]:
    """Bytes that begin as a JPEG does; readers do not look further."""
    rng = np.random.default_rng(seed)
    return [b"\xff\xd8\xff" + rng.bytes(size - 3 - number % 7) for number in range(count)]


def make_shards(root: Path, split: str = "train", shards: int = 4, per_shard: int = 6, size: int = 4000) -> list[bytes]:
    """`root/split` with an index, three classes; image i has the label i % 3. Returns the images."""
    folder = root / split
    folder.mkdir(parents=True)
    every = images(shards * per_shard, size, seed=len(split))
    for number in range(shards):
        contents = []
        for i in range(number * per_shard, (number + 1) * per_shard):
            contents += [(f"{i:04}.jpg", every[i]), (f"{i:04}.cls", b"%d" % (i % 3))]
        (folder / f"{split}-{number:05}.tar").write_bytes(tar(contents))
    (root / "classes.txt").write_text("ant\nbee\ncat\n")
    index_existing(folder, root / "classes.txt")
    return every


class Server:
    """The requests of a running server, and the errors to make. By default the server ignores ranges."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.failures: dict[str, int] = {}  # How many more requests of a file name fail.
        self.status = 503
        self.cut: dict[str, int] = {}  # How many of the announced bytes of a file name are sent.
        self.replaced: dict[str, bytes] = {}  # Other contents of a file name.
        self.seconds = 0.0  # How long an answer takes.
        self.has_ranges = False
        self.starts: list[int] = []  # The first byte of each answer.


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    pause = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            server.requests[name] += 1
            pause.wait(server.seconds)
            path = folder / self.path.lstrip("/")
            fails = server.failures.get(name, 0) > 0
            if fails or not path.is_file():
                server.failures[name] = server.failures.get(name, 0) - fails
                self.send_error(server.status if fails else 404)
                return
            content = server.replaced.get(name) or path.read_bytes()
            start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if server.has_ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            server.starts.append(start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            with suppress(ConnectionError):  # The client is gone.
                self.wfile.write(content[start:][: server.cut.get(name, len(content))])

        def log_message(self, format: str, *args: object) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}"
    try:
        yield server
    finally:
        pause.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


SHARDS, PER_SHARD = 4, 6
SHARD_BYTES = 40_960  # The size of each of these shards: 6 images of 4 kB, rounded up to tar's records.
NAMES = [f"train-{number:05}.tar" for number in range(SHARDS)]


def open_remote(server: Server, cache: Path) -> ShardReader:
    """A reader of a server's shards."""
    return ShardReader(server.url, "train", cache)


def read_all(reader: ShardReader, order: list[int] | None = None) -> list[bytes]:
    return [reader.read(i) for i in order or range(len(reader))]


def copies(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (cache / "shards").glob("*.tar")}


def downloads(server: Server) -> list[int]:
    return [server.requests[name] for name in NAMES]
