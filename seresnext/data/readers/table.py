"""Opens the reader of a data format."""

from __future__ import annotations

from pathlib import Path

from seresnext.data.readers import Reader
from seresnext.data.readers.folder import FolderReader
from seresnext.data.readers.imagenet import ImagenetReader, is_imagenet
from seresnext.data.shards.reader import ShardReader, is_shards
from seresnext.errors import DataError


def open_reader(
    root: Path | str, split: str, form: str = "folder", cache: Path | None = None, cache_size: float = 200.0
) -> Reader:
    """The reader of one split of data in the form that `data.format` names. Its index is kept in `cache`.

    `root` is a folder, or for shards also an address; of those at most `cache_size` GB are kept in `cache`. Raises
    DataError when there is no such split, or it cannot be used.
    """
    if form == "shards":
        return ShardReader(str(root), split, cache, round(cache_size * 1e9))
    root = Path(root)
    if form == "imagenet":
        return ImagenetReader(root, split, cache)
    assert form == "folder"
    if is_imagenet(root, split) and not (root / split).is_dir():
        raise DataError(
            f"{root} holds ImageNet's archives and no folder {split}; they are read as they are with "
            "data.format=imagenet"
        )
    return FolderReader(root, split, cache)


def detect_format(root: Path | str, split: str, form: str) -> str:
    """The form of data that the user named without saying what it is: `form`, unless the folder shows another."""
    if is_shards(str(root), split):
        return "shards"
    root = Path(root)
    if form == "shards" and (root / split).is_dir():
        return "folder"
    if form == "folder" and is_imagenet(root, split) and not (root / split).is_dir():
        return "imagenet"
    if form == "imagenet" and not is_imagenet(root, split) and (root / split).is_dir():
        return "folder"
    return form
