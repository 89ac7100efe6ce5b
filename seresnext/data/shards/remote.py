"""The shards of a server: repeated downloads, and copies in a folder that all processes of a machine share."""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from seresnext.data.order import BatchKey
from seresnext.data.readers.index_cache import kept_in
from seresnext.data.shards.format import Shard
from seresnext.errors import DataError
from seresnext.process.signals import FORK, block_stop_signals, init_worker
from seresnext.remote import file_system, refuse_secrets, retry

_CHUNK = 8 << 20
_DOWNLOADS = 4
_FAILURES = (DataError, "check data.root and the credentials"), (DataError, "check the server")  # final, and others


class Remote:
    """The files below one address, with copies in the folder `cache`/shards.

    A copy is named by its checksum, and appears under this name only when it is complete. No copy is removed. File
    locks end with their process. Raises DataError for a folder that cannot be used, and UsageError for a password.
    """

    def __init__(self, root: str, split: str, cache: Path) -> None:
        refuse_secrets(root, "data.root")
        self.url = f"{root.rstrip('/')}/{split}/"
        self._scheme = urlsplit(root).scheme
        self.folder = cache / "shards"
        with kept_in(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, most: int) -> bytes:
        """Return a file of at most `most` bytes; of a longer file, a part with more bytes. Raises DataError."""
        return retry(lambda: b"".join(self._chunks(name, most)), f"{self.url}{name} cannot be read", *_FAILURES)

    def copy_of(self, file: Shard) -> Path:
        """Return the path of the copy of a file. The copy may not exist."""
        return self.folder / f"{file.sha256}{Path(file.name).suffix}"

    def fetch(self, file: Shard, *, again: bool = False) -> Path:
        """Return the path of the copy of a file, after a download if there is no copy. Raises DataError.

        One process downloads, the others wait for the copy or for the error. Attempts of all processes, one after the
        other, would take longer than `runtime.loader_timeout`. `again` replaces a copy with another checksum.
        """
        path = self.copy_of(file)
        if path.exists() and not again:
            return path
        part = path.with_suffix(".part")
        with kept_in(self.folder), path.with_suffix(".lock").open("a+") as lock:
            began = os.fstat(lock.fileno()).st_mtime_ns
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and not (again and _sha256_of(path) != file.sha256):
                return path
            lock.seek(0)
            if os.fstat(lock.fileno()).st_mtime_ns != began and (problem := lock.read()):
                raise DataError(problem)
            try:
                retry(lambda: self._download(file, part), f"{self.url}{file.name} cannot be read", *_FAILURES)
                part.replace(path)
            except DataError as error:
                lock.truncate(0)
                lock.write(str(error))
                raise
            finally:
                part.unlink(missing_ok=True)
        return path

    def _download(self, file: Shard, part: Path) -> None:
        digest = hashlib.sha256()
        with kept_in(self.folder):  # A failure of the disk is no failure of the server.
            target = part.open("wb")
        with target:
            for chunk in self._chunks(file.name, file.bytes):
                digest.update(chunk)
                with kept_in(self.folder):
                    target.write(chunk)
                    target.flush()
        if digest.hexdigest() != file.sha256:
            raise OSError(f"the checksum of {part.stat().st_size} bytes is not the one in the index")

    def _chunks(self, name: str, most: int) -> Iterator[bytes]:
        """Yield the contents of a file, in order, until more than `most` bytes were read."""
        # One request for the whole file where fsspec can stream, else requests for ranges. With a size (any but 0),
        # fsspec does not request the size first. fsspec would report each failure of that request as a missing file.
        as_stream = {"block_size": 0, "size": 1} if self._scheme in ("http", "https") else {"cache_type": "none"}
        count = 0
        with file_system(self._scheme).open(self.url + name, "rb", **as_stream) as file:
            while count <= most and (chunk := file.read(_CHUNK)):
                yield chunk
                count += len(chunk)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def prefetch_shards(
    remote: Remote, shards: Sequence[Shard], shard_ids: np.ndarray, keys: Iterable[BatchKey]
) -> Iterator[Iterable[BatchKey]]:
    """Yield the same keys. Until the end of the block, a process downloads the shards of the keys.

    `shard_ids` (int N) has the shard number of each image.
    """
    # A fork copies the iterator of the keys, so both processes see all keys.
    process = FORK.Process(target=_run, args=(remote, shards, shard_ids, keys), daemon=True)
    with block_stop_signals():
        process.start()
    try:
        yield keys
    finally:
        process.kill()
        process.join()


def _run(remote: Remote, shards: Sequence[Shard], shard_ids: np.ndarray, keys: Iterable[BatchKey]) -> None:
    """Download shards. The worker that needs a shard repeats a failed download, and raises the error."""
    init_worker()
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        for number in in_order_of_need(shard_ids, keys):
            pool.submit(remote.fetch, shards[number])


def in_order_of_need(shard_ids: np.ndarray, keys: Iterable[BatchKey]) -> Iterator[int]:
    """Yield the number of each shard once, at the first key with an image of the shard."""
    missing = set(np.unique(shard_ids).tolist())
    for key in keys:
        for number in shard_ids[key.indices].tolist():
            if number in missing:
                missing.remove(number)
                yield number
        if not missing:
            return
