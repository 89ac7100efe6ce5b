"""The reader of images in tar shards with an index (`format`), on a disk or on a server. Nothing is extracted."""

import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.readers.folder import split_folder
from seresnext.data.readers.index_cache import cache_folder
from seresnext.data.shards.format import INDEX, MANIFEST, MOST_MANIFEST_BYTES, Manifest, Shard, index_size, open_index
from seresnext.data.shards.remote import Remote, prefetch_shards
from seresnext.errors import DataError
from seresnext.files import is_remote, open_regular, read_at
from seresnext.progress import warn

_REPAIR = "get the shard again, or run seresnext prepare shards with the same arguments again"


class ShardReader(Reader):
    """One split in shards. `root` is a folder, or an address such as `https://host/path` or `s3://bucket/prefix`.

    Images are numbered through all shards. The folder `cache` keeps the shards of a server. Raises DataError for a file
    that is missing, damaged or changed.
    """

    def __init__(self, root: str, split: str, cache: Path | None = None) -> None:
        self.remote = Remote(root, split, cache_folder(cache)) if is_remote(root) else None
        if self.remote:
            self._where = self.remote.url
            text = self.remote.read(MANIFEST, MOST_MANIFEST_BYTES)
            self.manifest = Manifest.from_text(text, self._where + MANIFEST)
            self._index = _fetch_index(self.remote, self.manifest)
        else:
            folder = split_folder(Path(root), split)
            self._where = f"{folder}/"
            self.manifest = Manifest.from_text(_read_manifest(folder), self._where + MANIFEST)
            _check_sizes(self._where, self.manifest.shards)
            self._index = open_index(folder / INDEX, self.manifest, self._where + INDEX)
        self._split = split
        self.labels, self.shard_ids = self._index["label"], self._index["shard"]
        self.has_local_files = self.remote is None
        self.classes = self.manifest.classes
        self.fingerprint = self.manifest.fingerprint

    def name(self, index: int) -> str:
        """Return a name such as `train/train-00012.tar, image 12345`. The key in the shard begins with this number."""
        return f"{self._split}/{self.manifest.shards[self._index['shard'][index]].name}, image {index}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image, checked by CRC-32. Raises DataError naming the shard and the image."""
        offset, size, crc32, number, _ = self._index[index].item()
        shard = self.manifest.shards[number]
        where = self._where + shard.name
        try:
            data = read_at(self._path(shard), offset, size)
            if zlib.crc32(data) != crc32 and self.remote:
                data = read_at(self._path(shard, again=True), offset, size)
        except OSError as error:
            raise DataError(f"{where} cannot be read (image {index}): {error.strerror or error}; {_REPAIR}") from None
        if zlib.crc32(data) != crc32:
            raise DataError(f"{where} is damaged (image {index} has another checksum); {_REPAIR}")
        return data

    def _path(self, shard: Shard, *, again: bool = False) -> Path | str:
        if self.remote:
            return self.remote.fetch(shard, again=again)
        return self._where + shard.name

    def prefetch(self, keys: Iterable[BatchKey]) -> AbstractContextManager[Iterable[BatchKey]]:
        """Return a context manager that gives the same keys. Inside, a process downloads the shards of the keys."""
        if self.remote:
            return prefetch_shards(self.remote, self.manifest.shards, self._index["shard"], keys)
        return nullcontext(keys)


def _read_manifest(folder: Path) -> bytes:
    try:
        with os.fdopen(open_regular(folder / MANIFEST), "rb") as file:
            return file.read(MOST_MANIFEST_BYTES + 1)
    except OSError as error:
        if not any(folder.glob("*.tar")):
            raise DataError(f"{folder} holds no shards; write some with seresnext prepare shards") from None
        raise DataError(
            f"{folder / MANIFEST} cannot be read: {error.strerror}; get the file, or for shards of another tool run "
            f"seresnext prepare shards --index {folder}"
        ) from None


def _check_sizes(folder: str, shards: Sequence[Shard]) -> None:
    """Raise DataError for a missing shard, and for a shard with another size than in the index."""
    for shard in shards:
        path = folder + shard.name
        try:
            size = os.stat(path).st_size  # noqa: PTH116 (a Path takes longer than the check)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; {_REPAIR}") from None
        if size != shard.bytes:
            raise DataError(f"{path} has {size} bytes, in the index {shard.bytes}; {_REPAIR}")


def _fetch_index(remote: Remote, manifest: Manifest) -> np.ndarray:
    """Return the index of a server's shards. A damaged copy is downloaded again."""
    file = Shard(INDEX, index_size(manifest.num_images), manifest.num_images, manifest.index_sha256)
    path = remote.fetch(file)
    try:
        return open_index(path, manifest, remote.url + INDEX)
    except DataError:
        warn(f"{path} is damaged and is downloaded again")
        return open_index(remote.fetch(file, again=True), manifest, remote.url + INDEX)


def is_shards(root: str, split: str) -> bool:
    """Return whether the root is an address, or the split a folder of shards with an index."""
    return is_remote(root) or os.path.isfile(Path(root, split, MANIFEST))  # noqa: PTH113 (raises nothing)


def check_room(readers: Iterable[Reader]) -> None:
    """Raise DataError if the disk of the cache has no room for the shards of a server that have no copy yet."""
    folder, needed = None, 0
    for reader in readers:
        if isinstance(reader, ShardReader) and (remote := reader.remote):
            folder = remote.folder
            needed += sum(shard.bytes for shard in reader.manifest.shards if not remote.copy_of(shard).exists())
    if folder and needed > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"{folder} has room for {free / 1e9:.3g} GB, and the shards to download have {needed / 1e9:.3g} GB; set "
            "data.cache to a folder on a larger disk"
        )
