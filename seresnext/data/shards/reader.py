"""Images in plain tar files of a hundred megabytes or so, beside an index: on a disk, or on a server.

What the files are is told in `shard_files`. Nothing is extracted: an image is a piece of a shard, read at its offset.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from seresnext.data.readers.index_cache import cache_folder
from seresnext.data.readers.pread import open_regular
from seresnext.data.readers.tarfiles import LARGEST_IMAGE
from seresnext.data.shards.cache import ShardCache
from seresnext.data.shards.format import INDEX, MANIFEST, MOST_MANIFEST_BYTES, Manifest, largest_index, map_index
from seresnext.data.shards.remote import Remote, is_remote
from seresnext.data.shards.store import LocalShards, RemoteShards, ShardStore
from seresnext.errors import DataError


class ShardReader:
    """One split in shards. `root` is a folder, or an address such as `https://host/path` or `s3://bucket/prefix`.

    Image `i` of the split is the i-th of the shards, one after the other. From a server whole shards are kept in the
    folder `cache`, at most `cache_size` bytes of them. Raises DataError for what is missing, damaged or changed.
    """

    def __init__(self, root: str, split: str, cache: Path | None = None, cache_size: int = 0) -> None:
        self.store: ShardStore
        if is_remote(root):
            remote = Remote(root, split)
            text = remote.read(MANIFEST)
            self.manifest = Manifest.from_text(text, remote.place(MANIFEST))
            shared = ShardCache(cache_folder(cache), cache_size)
            most = largest_index(self.manifest.num_images)
            self._path = shared.keep_aside(remote, INDEX, self.manifest.index_sha256, most)
            self.store = RemoteShards(remote, shared, self.manifest.shards)
            where = remote.place("")
        else:
            folder = _split_folder(Path(root), split)
            where = str(folder)
            try:
                with (folder / MANIFEST).open("rb") as file:
                    text = file.read(MOST_MANIFEST_BYTES + 1)
            except OSError as error:
                raise DataError(f"{folder / MANIFEST} cannot be read: {error.strerror}; get the file again") from None
            self.manifest = Manifest.from_text(text, str(folder / MANIFEST))
            self._path = folder / INDEX
            self.store = LocalShards(folder, self.manifest.shards)
            _check_sum(self._path, self.manifest)
        self._split = split
        self._index = _open_index(self._path, self.manifest, where)
        self.classes = self.manifest.classes
        self.fingerprint = self.manifest.fingerprint
        self.notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> np.ndarray:
        """The label of each image (uint16 N); a part of the mapped index, which processes share."""
        return self._index["label"]

    @property
    def shard_ids(self) -> np.ndarray:
        """Which shard each image is in (uint16 N)."""
        return self._index["shard"]

    def name(self, index: int) -> str:
        """`train/train-00012.tar, image 12345`; its key in the shard begins with that number."""
        return f"{self._split}/{self.manifest.shards[self._index['shard'][index]].name}, image {index}"

    def read(self, index: int) -> bytes:
        """The bytes of an image, as its CRC-32 says they were. Raises DataError naming the shard and the image."""
        offset, size, crc32, shard, _ = self._index[index].item()
        try:
            data = self.store.read(shard, offset, size)
            if zlib.crc32(data) != crc32 and self.store.renew(shard):
                data = self.store.read(shard, offset, size)
        except OSError as error:
            raise DataError(
                f"{self.store.place(shard)} cannot be read (image {index}): {error.strerror or error}; was the data "
                "changed during the run?"
            ) from None
        if zlib.crc32(data) != crc32:
            raise DataError(
                f"{self.store.place(shard)} is damaged: image {index} is not what was written (another checksum); get "
                "the shard again, or run scripts/prepare_shards.py with the same arguments again"
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        # The numbers stay in their file: another process maps it anew.
        return {name: value for name, value in self.__dict__.items() if name != "_index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index = map_index(self._path)


def _split_folder(root: Path, split: str) -> Path:
    folder = root / split
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give the folder that holds {split}/ with --data DIR")
    if not folder.is_dir():
        raise DataError(f"{root} has no split {split!r}; its splits are folders such as train/ and val/")
    if not (folder / MANIFEST).is_file():
        shards = next(folder.glob("*.tar"), None)
        if shards is None:
            raise DataError(f"{folder} holds no shards; write some with scripts/prepare_shards.py")
        raise DataError(
            f"{folder} holds shards without {MANIFEST}; if their writing was cut off, run scripts/prepare_shards.py "
            f"again; for shards of other origin run python scripts/prepare_shards.py --index {folder}"
        )
    return folder


def _check_sum(path: Path, manifest: Manifest) -> None:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest_index(manifest.num_images):
                raise DataError(f"{path} is no list of {manifest.num_images} images ({size} bytes); get the file again")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; get the file again") from None
    if digest != manifest.index_sha256:
        raise DataError(f"{path} is damaged or of other shards (another checksum than in {MANIFEST}); get both again")


def _open_index(path: Path, manifest: Manifest, where: str) -> np.ndarray:
    """The index in a file that has the right checksum. Anyone can have computed that, so what it says is checked."""
    try:
        index = map_index(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: {INDEX} is no list of images ({error}); get the file again") from None
    if not len(index):
        raise DataError(f"{where} holds no images")
    counts = np.bincount(index["shard"], minlength=len(manifest.shards))
    if len(counts) > len(manifest.shards) or counts.tolist() != [shard.images for shard in manifest.shards]:
        raise DataError(f"{where}: {INDEX} and {MANIFEST} do not agree; get both again")
    if int(index["size"].max()) > LARGEST_IMAGE:
        raise DataError(f"{where}: {INDEX} has an image of {int(index['size'].max())} bytes, so it is none")
    if int(index["label"].max()) >= len(manifest.classes):
        raise DataError(f"{where}: {INDEX} has labels that none of the {len(manifest.classes)} classes has")
    return index


def is_shards(root: str, split: str) -> bool:
    """Whether a root is an address, or its split a folder of shards with their index."""
    return is_remote(root) or (Path(root) / split / MANIFEST).is_file()


def check_cache(reader: ShardReader, together: int | None) -> None:
    """Raise DataError when training on a server's shards would get the same ones again and again.

    `together` is how many shards the order mixes at a time (`data.shuffle_shards`), None for all.
    """
    if not isinstance(reader.store, RemoteShards):
        return
    sizes, limit = [shard.bytes for shard in reader.store.shards], reader.store.cache.limit
    if sum(sizes) <= limit:
        return
    largest = max(sizes)
    fitting = limit // (2 * largest)
    advice = [f"raise data.cache_size to {math.ceil(sum(sizes) / 1e8) / 10}"]
    if fitting:
        advice.append(f"set data.shuffle_shards to {fitting} or less")
    if together is None:
        raise DataError(
            f"the shards of {reader.store.remote.place('')} have {sum(sizes) / 1e9:.3g} GB, and data.cache_size is "
            f"{limit / 1e9:.3g} GB: in an order that mixes all shards nearly every step would need shards that are not "
            f"in the cache; {', or '.join(advice)}"
        )
    # Those that are mixed now, and the next ones.
    if 2 * together * largest > limit:
        raise DataError(
            f"data.shuffle_shards {together} needs room for twice as many shards, {2 * together * largest / 1e9:.3g} "
            f"GB, and data.cache_size is {limit / 1e9:.3g} GB; {', or '.join(advice)}"
        )
