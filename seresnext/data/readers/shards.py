"""Images in plain tar files of a hundred megabytes or so, beside an index: on a disk, or on a server.

A folder of shards holds `*.tar` in the layout of WebDataset (`KEY.jpg` and `KEY.cls`, the label in digits),
`index.json` with classes, options and all SHA-256, and `index.npy` with place, label and CRC-32 of every image.
`scripts/prepare_shards.py` writes all three. Nothing is extracted: an image is a piece of a shard, read at its offset.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import posixpath
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from seresnext.data.index import cache_folder
from seresnext.data.readers.tarfiles import Member, members
from seresnext.data.remote import Remote, ShardCache, is_remote
from seresnext.errors import DataError

MANIFEST = "index.json"
INDEX = "index.npy"
ENTRY = np.dtype([("offset", "<u4"), ("size", "<u4"), ("crc32", "<u4"), ("shard", "<u2"), ("label", "<u2")])
"""An image: where it lies in which shard, its size in bytes, the CRC-32 of its bytes, its label. 20 MB for ImageNet."""

LARGEST_SHARD = 2**32 - 1
MOST_SHARDS = MOST_CLASSES = 2**16

_FORMAT = "seresnext-shards-1"
_IMAGES = frozenset({"jpg", "jpeg", "png"})
_MOST_DIGITS = 5


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, its size in bytes, how many images it holds, and its SHA-256."""

    name: str
    bytes: int
    images: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `index.json` says. `options` tells how the shards were made and is for people and for the script."""

    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    index_sha256: str
    options: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of classes, shards and index: which images these are, in which order."""
        facts = [self.classes, [vars(shard) for shard in self.shards], self.index_sha256]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def num_images(self) -> int:
        """Images of all shards."""
        return sum(shard.images for shard in self.shards)

    def to_text(self) -> str:
        """The text of `index.json`, the same for the same contents."""
        said = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "num_images": self.num_images,
            "options": self.options,
            "index_sha256": self.index_sha256,
            "classes": self.classes,
            "shards": [vars(shard) for shard in self.shards],
        }
        return json.dumps(said, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes, where: str) -> Manifest:
        """Read `index.json`. Raises DataError naming `where` when it is damaged or of another version."""
        try:
            said = json.loads(text)
            if said["format"] != _FORMAT:
                raise DataError(f"{where} is of the format {said['format']!r}, and this version reads {_FORMAT!r}")
            manifest = cls(
                tuple(said["classes"]),
                tuple(Shard(**shard) for shard in said["shards"]),
                said["index_sha256"],
                said["options"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where} is no index of shards ({type(error).__name__}: {error})") from None
        for shard in manifest.shards:
            if posixpath.basename(shard.name) != shard.name or not shard.name.endswith(".tar"):
                raise DataError(f"{where} names the shard {shard.name!r}; a shard is a .tar file beside its index")
        if manifest.fingerprint != said.get("fingerprint"):
            raise DataError(f"{where} was changed since it was written: its fingerprint is another; prepare it again")
        return manifest


class ShardStore(Protocol):
    """Where the bytes of shards are."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, fewer where it ends. Raises DataError or OSError."""
        ...

    def renew(self, shard: int) -> bool:
        """Get a damaged shard again; False when there is nowhere to get it from."""
        ...

    def place(self, shard: int) -> str:
        """Path or address of a shard, for messages."""
        ...


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
            self._path = shared.keep_aside(remote, INDEX, self.manifest.index_sha256)
            self.store = RemoteShards(remote, shared, self.manifest.shards)
            where = remote.place("")
        else:
            folder = _split_folder(Path(root), split)
            where = str(folder)
            self.manifest = Manifest.from_text((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
            self._path = folder / INDEX
            self.store = LocalShards(folder, self.manifest.shards)
        self._split = split
        self._index = _open_index(self._path, self.manifest, where)
        self.classes = self.manifest.classes
        self.labels = self._index["label"].astype(np.int64)
        self.fingerprint = self.manifest.fingerprint

    def __len__(self) -> int:
        return len(self._index)

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
        self._index = _map(self._path)


class LocalShards:
    """Shards in a folder. Raises DataError when one is missing or has another size than its index says."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._paths = tuple(str(folder / shard.name) for shard in shards)
        for path, shard in zip(self._paths, shards, strict=True):
            _check_file(Path(path), shard)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard. No handle is kept: there may be more shards than a process may have files open."""
        return read_at(self._paths[shard], offset, size)

    def renew(self, shard: int) -> bool:
        """False: there is only this one."""
        return False

    def place(self, shard: int) -> str:
        """The path of a shard."""
        return self._paths[shard]


class RemoteShards:
    """Shards on a server, each got whole when it is first needed."""

    def __init__(self, remote: Remote, cache: ShardCache, shards: Sequence[Shard]) -> None:
        self.remote = remote
        self.cache = cache
        self.shards = tuple(shards)
        cache.check_room(shards, remote.place(""))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard."""
        return self.cache.read(self.remote, self.shards[shard], offset, size)

    def renew(self, shard: int) -> bool:
        """Throw away the local copy of a shard, so that the next read gets it again."""
        self.cache.drop(self.shards[shard])
        return True

    def place(self, shard: int) -> str:
        """The address of a shard."""
        return self.remote.place(self.shards[shard].name)


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, fewer where it ends. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, size, offset)
        while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------ contents of a shard


class Listing(NamedTuple):
    """The images of a shard (ENTRY), and the shard's SHA-256."""

    entries: np.ndarray
    sha256: str


def list_shard(path: Path, num_classes: int, advance: Callable[[int], object] | None = None) -> Listing:
    """The images of a shard, in their order, and the checksum of the file.

    Raises DataError naming the member that is hostile, cut off or twice there (readers/tarfiles.py), an image without
    label, a label without image, and a label that no class has. `advance` is called with numbers of images.
    """
    found: list[tuple[int, int, int, int, int]] = []
    seen: set[str] = set()
    group: dict[str, Member] = {}
    key = ""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_SHARD:
            raise DataError(f"{path} has {size} bytes; a shard has at most 4 GiB: make more of them")

        def read(offset: int, count: int) -> bytes:
            return os.pread(file.fileno(), count, offset)

        def close_group() -> None:
            if group:
                found.append(_entry(group, key, read, num_classes, path))
                if advance:
                    advance(1)

        for member in members(read, 0, size, str(path)):
            folder, name = posixpath.split(member.name)
            stem, _, ending = name.partition(".")
            own = posixpath.join(folder, stem)
            if own != key:
                close_group()
                if own in seen:
                    raise DataError(f"{path}: member {member.name!r} is apart from the others of its key {own!r}")
                seen.add(own)
                key, group = own, {}
            kind = "image" if ending.lower() in _IMAGES else ending.lower()
            if kind in group:
                raise DataError(f"{path}: member {member.name!r} is a second image of the key {own!r}")
            group[kind] = member
        close_group()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Listing(np.array(found, ENTRY), digest)


def _entry(
    group: dict[str, Member], key: str, read: Callable[[int, int], bytes], num_classes: int, path: Path
) -> tuple[int, int, int, int, int]:
    image, label = group.get("image"), group.get("cls")
    first = next(iter(group.values()))
    if image is None:
        raise DataError(f"{path}: member {first.name!r} has no image {key}.jpg or {key}.png beside it")
    if label is None:
        raise DataError(f"{path}: member {image.name!r} has no label {key}.cls beside it")
    text = read(label.offset, label.size).strip() if label.size <= 2 * _MOST_DIGITS else b""
    if not (text.isdigit() and len(text) <= _MOST_DIGITS and int(text) < num_classes):
        raise DataError(
            f"{path}: member {label.name!r} is no label: {text!r} is not a number from 0 to {num_classes - 1}"
        )
    return image.offset, image.size, zlib.crc32(read(image.offset, image.size)), 0, int(text)


def index_bytes(listings: Sequence[np.ndarray]) -> bytes:
    """The contents of `index.npy` for the images of all shards."""
    entries = np.concatenate(listings)
    entries["shard"] = np.repeat(np.arange(len(listings)), [len(listing) for listing in listings])
    buffer = io.BytesIO()
    np.save(buffer, entries, allow_pickle=False)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ opening


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


def _check_file(path: Path, shard: Shard) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; get the shard again, or run scripts/prepare_shards.py with the "
            "same arguments again"
        ) from None
    if size != shard.bytes:
        # What is wrong with it may say more than a number.
        list_shard(path, MOST_CLASSES)
        raise DataError(f"{path} has {size} bytes, and its index says {shard.bytes}; get the shard again")


def _open_index(path: Path, manifest: Manifest, where: str) -> np.ndarray:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; get it again") from None
    if digest != manifest.index_sha256:
        raise DataError(f"{path} is damaged or of other shards (another checksum than in {MANIFEST}); get both again")
    index = _map(path)
    assert index.dtype == ENTRY
    if not len(index):
        raise DataError(f"{where} holds no images")
    counts = np.bincount(index["shard"], minlength=len(manifest.shards))
    if len(counts) > len(manifest.shards) or counts.tolist() != [shard.images for shard in manifest.shards]:
        raise DataError(f"{where}: {INDEX} and {MANIFEST} do not agree; get both again")
    if int(index["label"].max()) >= len(manifest.classes):
        raise DataError(f"{where}: {INDEX} has labels that none of the {len(manifest.classes)} classes has")
    return index


def _map(path: Path) -> np.ndarray:
    # A plain view: looking up an entry of a memmap costs several times as much.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


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
