"""The table of data formats, and the detection of a format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from seresnext.data.readers import Reader
from seresnext.data.readers.folder import FolderReader
from seresnext.data.readers.imagenet import ImagenetReader, is_imagenet
from seresnext.data.shards.reader import ShardReader, is_shards
from seresnext.errors import DataError


def _open_folder(root: str, split: str, cache: Path | None, cache_size: float) -> Reader:
    if is_imagenet(Path(root), split) and not (Path(root) / split).is_dir():
        raise DataError(f"{root} holds ImageNet's archives and no folder {split}; set data.format=imagenet")
    return FolderReader(Path(root), split, cache)


READERS: dict[str, Callable[[str, str, Path | None, float], Reader]] = {
    "folder": _open_folder,
    "imagenet": lambda root, split, cache, cache_size: ImagenetReader(Path(root), split, cache),
    "shards": lambda root, split, cache, cache_size: ShardReader(root, split, cache, round(cache_size * 1e9)),
}
"""Opens a reader from root, split, cache folder and cache size (GB), for each `data.format` but `synthetic`."""


def open_reader(
    root: Path | str, split: str, format: str = "folder", cache: Path | None = None, cache_size: float = 200.0
) -> Reader:
    """Open the reader of one split of data in a format of `READERS`.

    `root` is a folder; for shards, also an address. The folder `cache` keeps the index, and at most `cache_size` GB of
    shards. Raises DataError when the split is missing or cannot be used.
    """
    return READERS[format](str(root), split, cache, cache_size)


def detect_format(root: Path | str, split: str, format: str) -> str:
    """Return the format of data whose format the user did not give: `format`, unless the folder shows another."""
    if is_shards(str(root), split):
        return "shards"
    has_folder, has_archives = (Path(root) / split).is_dir(), is_imagenet(Path(root), split)
    if has_folder and (format == "shards" or (format == "imagenet" and not has_archives)):
        return "folder"
    return "imagenet" if format == "folder" and has_archives and not has_folder else format
