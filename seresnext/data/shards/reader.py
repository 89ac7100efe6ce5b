"""The reader of images in tar shards with an index (`format`), on a disk or on a server. Nothing is extracted."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.readers.files import LARGEST_IMAGE, read_at
from seresnext.data.readers.folder import split_folder
from seresnext.data.readers.index_cache import cache_folder
from seresnext.data.shards.cache import RemoteShards, fetch_index
from seresnext.data.shards.format import (
    INDEX,
    MANIFEST,
    MOST_CLASSES,
    MOST_MANIFEST_BYTES,
    Manifest,
    Shard,
    largest_index,
    list_shard,
    map_index,
)
from seresnext.data.shards.readahead import prefetch_shards
from seresnext.data.shards.remote import Remote
from seresnext.errors import DataError
from seresnext.files import open_regular
from seresnext.remote import is_remote

_REPAIR = "get the shard again, or run seresnext prepare shards with the same arguments again"


class LocalShards:
    """Shards in a folder. Raises DataError for a missing shard, and for one with another size than in the index."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        # Without pathlib, which takes longer than the check of a thousand shards.
        self._paths = tuple(f"{folder}/{shard.name}" for shard in shards)
        for path, shard in zip(self._paths, shards, strict=True):
            try:
                size = os.stat(path).st_size  # noqa: PTH116
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}; {_REPAIR}") from None
            if size != shard.bytes:
                list_shard(Path(path), MOST_CLASSES)  # May find the cause, and raise a better message.
                raise DataError(f"{path} has {size} bytes, in the index {shard.bytes}; {_REPAIR}")

    def location(self, shard: int) -> str:
        """Return the path of a shard."""
        return self._paths[shard]

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return bytes of a shard. The file is closed again: a process may not open all shards at once."""
        return read_at(self._paths[shard], offset, size)


class ShardReader(Reader):
    """One split in shards. `root` is a folder, or an address such as `https://host/path` or `s3://bucket/prefix`.

    Images are numbered through all shards. The folder `cache` keeps whole shards of a server, at most `cache_size`
    bytes. Raises DataError for a file that is missing, damaged or changed.
    """

    def __init__(self, root: str, split: str, cache: Path | None = None, cache_size: int = 0) -> None:
        if is_remote(root):
            remote, folder = Remote(root, split), cache_folder(cache)
            self.manifest = Manifest.from_text(remote.read(MANIFEST, MOST_MANIFEST_BYTES), remote.address(MANIFEST))
            most = largest_index(self.manifest.num_images)
            path = fetch_index(remote, INDEX, self.manifest.index_sha256, most, folder)
            self.store = RemoteShards(remote, self.manifest.shards, folder, cache_size)
            where = remote.address("")
        else:
            folder = _shards_folder(Path(root), split)
            where, path = str(folder), folder / INDEX
            try:
                with (folder / MANIFEST).open("rb") as file:
                    text = file.read(MOST_MANIFEST_BYTES + 1)
            except OSError as error:
                raise DataError(f"{folder / MANIFEST} cannot be read: {error.strerror}; get the file again") from None
            self.manifest = Manifest.from_text(text, str(folder / MANIFEST))
            self.store = LocalShards(folder, self.manifest.shards)
            _check_sum(path, self.manifest)
        self._split = split
        self._index = _open_index(path, self.manifest, where)
        self.labels, self.shard_ids = self._index["label"], self._index["shard"]
        self.has_local_files = isinstance(self.store, LocalShards)
        self.classes = self.manifest.classes
        self.fingerprint = self.manifest.fingerprint
        self.notices = ()

    def name(self, index: int) -> str:
        """Return a name such as `train/train-00012.tar, image 12345`. The key in the shard begins with this number."""
        return f"{self._split}/{self.manifest.shards[self._index['shard'][index]].name}, image {index}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image, checked by CRC-32. Raises DataError naming the shard and the image."""
        offset, size, crc32, shard, _ = self._index[index].item()
        where = self.store.location(shard)
        try:
            data = self.store.read(shard, offset, size)
            if zlib.crc32(data) != crc32 and isinstance(self.store, RemoteShards):
                self.store.discard(shard)
                data = self.store.read(shard, offset, size)
        except OSError as error:
            raise DataError(f"{where} cannot be read (image {index}): {error.strerror or error}; {_REPAIR}") from None
        if zlib.crc32(data) != crc32:
            raise DataError(f"{where} is damaged (image {index} has another checksum); {_REPAIR}")
        return data

    def prefetch(self, keys: Iterable[BatchKey]) -> AbstractContextManager[Iterable[BatchKey]]:
        """Return a context manager that gives the same keys. Inside, a process downloads the shards of later keys."""
        if isinstance(self.store, RemoteShards):
            return prefetch_shards(self.store, self._index["shard"], keys)
        return nullcontext(keys)


def _shards_folder(root: Path, split: str) -> Path:
    folder = split_folder(root, split)
    if not (folder / MANIFEST).is_file():
        if next(folder.glob("*.tar"), None) is None:
            raise DataError(f"{folder} holds no shards; write some with seresnext prepare shards")
        raise DataError(
            f"{folder} holds shards without {MANIFEST}; if seresnext prepare shards was stopped, run it again; for "
            f"shards of another tool, run seresnext prepare shards --index {folder}"
        )
    return folder


def _check_sum(path: Path, manifest: Manifest) -> None:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest_index(manifest.num_images):
                raise DataError(f"{path} has {size} bytes, too many for {manifest.num_images} images; get another")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; get the file again") from None
    if digest != manifest.index_sha256:
        raise DataError(f"{path} is damaged or of other shards (not the checksum in {MANIFEST}); get both files again")


def _open_index(path: Path, manifest: Manifest, where: str) -> np.ndarray:
    """Map an index with the right checksum, and check the entries: a hostile file can have a right checksum, too."""
    try:
        index = map_index(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: {INDEX} is no list of images ({error}); get the file again") from None
    if not len(index):
        raise DataError(f"{where} holds no images; prepare the shards again")
    counts = np.bincount(index["shard"], minlength=len(manifest.shards)).tolist()
    size, label = int(index["size"].max()), int(index["label"].max())
    problem = ""
    if counts != [shard.images for shard in manifest.shards]:
        problem = f"disagrees with {MANIFEST} on the number of images"
    elif size > LARGEST_IMAGE:
        problem = f"has an image of {size} bytes, more than {LARGEST_IMAGE}"
    elif label >= len(manifest.classes):
        problem = f"has a label beyond the {len(manifest.classes)} classes"
    if problem:
        raise DataError(f"{where}: {INDEX} {problem}; get both files again")
    return index


def is_shards(root: str, split: str) -> bool:
    """Return whether the root is an address, or the split a folder of shards with an index."""
    return is_remote(root) or (Path(root) / split / MANIFEST).is_file()


def check_cache(reader: Reader, shards_per_block: int | None) -> None:
    """Raise DataError if training would download the same shards of a server again and again.

    `shards_per_block` is `data.shuffle_shards`, None for all shards.
    """
    if not isinstance(reader, ShardReader) or not isinstance(reader.store, RemoteShards):
        return
    sizes, limit = [shard.bytes for shard in reader.manifest.shards], reader.store.limit
    # Room for the shards of a block and of the next one.
    needed = sum(sizes) if shards_per_block is None else min(sum(sizes), 2 * shards_per_block * max(sizes))
    if needed <= limit:
        return
    advice = f"raise data.cache_size to {math.ceil(sum(sizes) / 1e8) / 10}"
    if fitting := limit // (2 * max(sizes)):
        advice += f", or set data.shuffle_shards to {fitting} or less"
    kind = "all shards" if shards_per_block is None else f"twice data.shuffle_shards ({shards_per_block})"
    raise DataError(
        f"{reader.store.remote.address('')}: the order needs room for {kind}, {needed / 1e9:.3g} GB, and "
        f"data.cache_size is {limit / 1e9:.3g} GB; {advice}"
    )
