"""The ImageFolder layout: ROOT/SPLIT/CLASS/IMAGE."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from seresnext.data.decode.kinds import ENDINGS, describe, kind_of
from seresnext.data.readers import Reader
from seresnext.data.readers.index import Index, index_by_class
from seresnext.data.readers.index_cache import Signature, index_path, mark_stale, open_or_build, sign, times_of
from seresnext.errors import DataError, listed, printable
from seresnext.files import read_at, read_image
from seresnext.progress import progress

_ENDINGS = tuple(ending for endings in ENDINGS.values() for ending in endings)
_HEAD = 4096  # bytes that show the kind of a file


class FolderReader(Reader):
    """One split of an image folder. A class is a folder, and the label is the position among the sorted names.

    Names that start with a dot (`.ipynb_checkpoints`) are skipped. The content decides about files with other endings
    than those of images: files that are no images are skipped and counted in `notices`. File names are kept in an
    index in the folder `cache` (by default, the user's cache folder): reference counting would copy 1.28 million Python
    strings into every worker. Raises DataError for any other layout.
    """

    def __init__(self, root: Path, split: str, cache: Path | None = None) -> None:
        self._folder = split_folder(root, split)
        self._index = open_or_build(
            index_path(cache, "folder", root, split),
            lambda: folder_signature(self._folder),
            lambda: _scan_split(self._folder),
        )
        self.classes, self.labels = self._index.classes, self._index.label
        self.fingerprint = self._index.fingerprint
        self.notices = tuple(f"{self._folder}: {notice}" for notice in self._index.notices)

    def name(self, index: int) -> str:
        """Return the path of an image below the root of the data."""
        return f"{self._folder.name}/{self.classes[self.labels[index]]}/{self._index.stored_name(index)}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file. Raises DataError naming a file that cannot be read."""
        path = f"{self._folder}/{self.classes[self.labels[index]]}/{self._index.stored_name(index)}"
        try:
            return read_image(path)
        except OSError as error:
            advice = "restore the file"
            # A new listing would contain a broken link again.
            if not os.path.lexists(path):
                mark_stale(self._index)
                advice += ", or start again to list the folder again"
            raise DataError(f"{path} cannot be read: {error.strerror}; {advice}") from None


def folder_signature(folder: Path) -> Signature:
    """Return a signature that changes when a class folder, or a file in one, is added or removed.

    A new or removed file sets the times of the class folder. A mounted object store gives all folders equal times.
    """
    classes, loose, others = _scan(folder)
    try:
        times = [times_of((folder / name).stat()) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; restore the folder or restart") from None
    shows_changes = all(len(set(column)) > 1 for column in zip(*times, strict=True))
    return sign("folder", classes, loose, sorted(others.items()), times=times, shows_changes=shows_changes)


def _scan_split(folder: Path) -> Index:
    """List all images of a split. Raises one DataError for all problems of the split."""
    classes, loose, others = _scan(folder)
    problems = []
    if loose:
        problems.append(
            f"{len(loose)} images are outside of class folders, such as {loose[0]}; the layout is "
            f"{folder.name}/CLASS/IMAGE, with a folder for each class, also for validation"
        )
    elif not classes:
        problems.append(f"there are no class folders; the layout is {folder.name}/CLASS/IMAGE")
    names: dict[str, list[str]] = {}
    with progress(f"index of {folder.name}", len(classes), " classes") as advance:
        for class_name in classes:
            nested, found, skipped = _scan(folder / class_name)
            others += skipped
            if nested:
                problems.append(
                    f"{class_name} holds the folder {nested[0]}; move the images of this folder up into the class "
                    "folder, or move the folder away"
                )
            elif not found:
                there = f" (found {counted(skipped)})" if skipped else ""
                problems.append(f"{class_name} has no images{there}; fill or remove the folder")
            names[class_name] = found
            advance(1)
    if problems:
        raise DataError("\n  ".join([f"{folder} cannot be used:", *listed(problems)]))
    return index_by_class(names, (f"skipped files: {counted(others)}",) if others else ())


def split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split. Raises DataError that lists the folders there."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give the folder of train/ and val/ with --data DIR")
    splits, _ = list_names(root)
    if split not in splits:
        there = f"found {', '.join(listed(splits))}" if splits else "found no folders"
        raise DataError(
            f"{root} has no split {split!r} ({there}); a split is a folder such as train/ or val/, "
            "and data.split='{val: 0.2}' divides data without splits"
        )
    return root / split


def _scan(folder: Path) -> tuple[list[str], list[str], Counter[tuple[str, str]]]:
    """Return the folders and the images in a folder, as `list_names`, and count the kinds of all other files."""
    folders, files = list_names(folder)
    kinds = [other_kind(f"{folder}/{name}") for name in files]
    images = [name for name, kind in zip(files, kinds, strict=True) if kind is None]
    return folders, images, Counter(filter(None, kinds))


def list_names(folder: Path | str) -> tuple[list[str], list[str]]:
    """Return the names of folders and of files in a folder, without hidden names, sorted.

    Raises DataError for a folder that cannot be listed.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # A link with the name of an image is not followed. Each link would cost a system call.
                is_image = entry.name.lower().endswith(_ENDINGS)
                (folders if entry.is_dir(follow_symlinks=not is_image) else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}; make it readable for this user") from None
    return sorted(folders), sorted(files)


def walk(folder: str) -> Iterator[str]:
    """Yield the paths of all files below a folder, without hidden names. Raises DataError.

    Links to folders are followed, except to a folder above the link.
    """
    stack = [(folder, frozenset[str]())]
    while stack:
        folder, above = stack.pop()
        place = os.path.realpath(folder)
        if place not in above:
            folders, files = list_names(folder)
            yield from (os.path.join(folder, name) for name in files)  # noqa: PTH118
            stack += [(os.path.join(folder, name), above | {place}) for name in reversed(folders)]  # noqa: PTH118


def other_kind(path: str) -> tuple[str, str] | None:
    """Return None for an image, by the ending or the content; else the content in words, and the ending."""
    if path.lower().endswith(_ENDINGS):
        return None
    ending = Path(path).suffix.lower()
    try:
        head = read_at(path, 0, _HEAD)
    except OSError:
        return "unreadable", ending
    return None if kind_of(head) else (describe(head), ending)


def counted(kinds: Counter[tuple[str, str]]) -> str:
    """Return the most frequent kinds, in the same order for any order of files: `2 .mov (a video), 1 .txt (a text)`."""
    most = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count:,} {printable(ending, 40) or 'without ending'} ({kind})" for (kind, ending), count in most]
    return ", ".join(listed(parts, 5))
