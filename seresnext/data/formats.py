"""The table of data formats, and the detection of a format."""

import os
from collections.abc import Callable
from pathlib import Path

from seresnext.data.readers import Reader
from seresnext.data.readers.folder import FolderReader
from seresnext.data.readers.imagenet import ImagenetReader, is_imagenet
from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.data.readers.photos import ALL, PhotoReader
from seresnext.data.shards.reader import ShardReader, is_shards
from seresnext.errors import DataError
from seresnext.files import is_list


def _open_folder(root: str, split: str, cache: Path | None, choice: PhotoChoice | None) -> Reader:
    folder = Path(root)
    has_other_val = not (folder / "val").is_dir() and any((folder / name).is_dir() for name in ("valid", "validation"))
    wants_all = split == ALL and not (folder / split).is_dir()
    if choice or is_list(root) or has_other_val or wants_all:
        return PhotoReader(folder, split, choice, cache)
    if is_imagenet(folder, split) and not (folder / split).is_dir():
        raise DataError(f"{root} holds ImageNet's archives and no folder {split}; set data.format=imagenet")
    return FolderReader(folder, split, cache)


READERS: dict[str, Callable[[str, str, Path | None, PhotoChoice | None], Reader]] = {
    "folder": _open_folder,
    "imagenet": lambda root, split, cache, choice: ImagenetReader(Path(root), split, cache),
    "shards": lambda root, split, cache, choice: ShardReader(root, split, cache),
}
"""Opens a reader from root, split, cache folder and choice of photos, for each `data.format` but `synthetic`."""


def open_reader(
    root: Path | str, split: str, format: str = "folder", cache: Path | None = None, choice: PhotoChoice | None = None
) -> Reader:
    """Open the reader of one split of data in a format of `READERS`.

    `root` is a folder; for photos also a list, for shards also an address. The folder `cache` keeps the index, and the
    shards of a server. `choice` is for the format `folder`. Raises DataError for a split that cannot be used.
    """
    return READERS[format](str(root), split, cache, choice)


def detect_format(root: Path | str, split: str, format: str) -> str:
    """Return the format of data whose format the user did not give: `format`, unless the folder shows another."""
    if is_shards(str(root), split):
        return "shards"
    has_folder = os.path.isdir(Path(root, split))  # noqa: PTH112 (raises nothing)
    has_archives = is_imagenet(Path(root), split)
    if has_folder and (format == "shards" or (format == "imagenet" and not has_archives)):
        return "folder"
    return "imagenet" if format == "folder" and has_archives and not has_folder else format
