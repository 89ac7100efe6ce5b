"""Synthetic data for the benchmark of the index: the data is a hole in a file, the index has the real size.

Each `write` function returns the root of the data, the format, and the index file.
"""

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from seresnext.data.readers.folder import folder_signature
from seresnext.data.readers.imagenet import TRAIN, archives_signature
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.readers.index import Index, join_names
from seresnext.data.readers.index_cache import Signature, index_path, save_index
from seresnext.data.shards.format import ENTRY, INDEX, MANIFEST, Manifest, Shard, index_bytes
from seresnext.data.synthetic import synthetic_photograph

_MEAN_BYTES = 110_000  # Mean size of an image of ImageNet.
_SHARD_BYTES = 128_000_000


def write_archives(root: Path, images: int, classes: int) -> tuple[Path, str, Path]:
    """Write an archive that is a hole, and the index."""
    root.mkdir()
    archive = root / TRAIN.name
    _write_hole(archive, TRAIN.size)
    rng = np.random.default_rng(0)
    sizes = _sizes(rng, images)
    labels = np.sort(rng.integers(0, classes, images))
    offsets = rng.integers(512, TRAIN.size - 2 * int(sizes.max()), images)
    return _save_archive_index(archive, classes, labels, offsets, sizes)


def write_photographs(root: Path, images: int) -> tuple[Path, str, Path]:
    """Write an archive whose many entries are a few synthetic JPEGs, and the index."""
    root.mkdir()
    archive = root / TRAIN.name
    photographs = [synthetic_photograph(number) for number in range(32)]
    archive.write_bytes(b"".join(photographs))
    sizes = np.array([len(data) for data in photographs])
    which = np.arange(images) % len(photographs)
    offsets = (np.cumsum(sizes) - sizes)[which]
    return _save_archive_index(archive, 1000, np.sort(which), offsets, sizes[which])


def _save_archive_index(
    archive: Path, classes: int, labels: np.ndarray, offsets: np.ndarray, sizes: np.ndarray
) -> tuple[Path, str, Path]:
    index = Index(class_names(classes), fingerprint="0" * 64, label=labels, offset=offsets, size=sizes)
    return _save(archive.parent, "imagenet", index, archives_signature([archive]))


def write_folder(root: Path, images: int) -> tuple[Path, str, Path]:
    """Write a thousand class folders without files, and an index of file names."""
    classes = class_names(1000)
    for name in classes:
        (root / "train" / name).mkdir(parents=True)
    labels = np.sort(np.random.default_rng(0).integers(0, 1000, images))
    names, ends = join_names(
        f"{classes[label]}_{number % 100_000}.JPEG" for number, label in enumerate(labels.tolist())
    )
    index = Index(classes, fingerprint="0" * 64, label=labels, name_ends=ends, names=names)
    return _save(root, "folder", index, folder_signature(root / "train"))


def _save(root: Path, format: str, index: Index, signature: Signature) -> tuple[Path, str, Path]:
    """Write an index at the path where the reader of the format looks for the index."""
    path = index_path(root / "cache", format, root, "train")
    return root, format, save_index(path, index, signature.digest).path


def write_shards(root: Path, images: int) -> tuple[Path, str, Path]:
    """Write shards that are holes, and the index. Images have few sizes, because each size needs a checksum."""
    folder = root / "train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = _sizes(rng, 64)
    sums = np.array([zlib.crc32(bytes(size)) for size in sizes.tolist()], np.uint32)
    which = rng.integers(0, len(sizes), images)
    entries = np.zeros(images, ENTRY)
    entries["offset"] = rng.integers(512, _SHARD_BYTES - int(sizes.max()), images)
    entries["size"], entries["crc32"] = sizes[which], sums[which]
    entries["label"] = rng.integers(0, 1000, images)
    listings = np.array_split(entries, -(-images * _MEAN_BYTES // _SHARD_BYTES))
    shards = [Shard(f"train-{n:05}.tar", _SHARD_BYTES, len(each), "0" * 64) for n, each in enumerate(listings)]
    for shard in shards:
        _write_hole(folder / shard.name, shard.bytes)
    content = index_bytes(listings)
    manifest = Manifest(class_names(1000), tuple(shards), hashlib.sha256(content).hexdigest(), {})
    (folder / MANIFEST).write_text(manifest.to_text(), encoding="utf-8")
    with (folder / INDEX).open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # The page cache drops only pages that are on the disk.
    return root, "shards", folder / INDEX


def class_names(count: int) -> tuple[str, ...]:
    if count == 1000:
        return tuple(row.wordnet_id for row in imagenet_classes())
    return tuple(f"n{number:08}" for number in range(count))


def _sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.gamma(4.0, _MEAN_BYTES / 4, count).astype(np.uint32)


def _write_hole(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)
