"""The ImageFolder layout: ROOT/SPLIT/CLASS/IMAGE."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from seresnext.errors import DataError

_ENDINGS = (".jpeg", ".jpg", ".png")
# How many problems a message lists; a wrong folder has a thousand of the same.
_LISTED = 20


class FolderReader:
    """One split of an image folder. A class is a folder, its label the place of its name among the sorted names.

    Names starting with a dot are passed over (`.ipynb_checkpoints` is the usual one). File names are kept as one block
    of bytes with offsets: 1.28 million Python strings would be copied into every worker by reference counting alone.
    """

    def __init__(self, root: Path, split: str) -> None:
        self._folder = _split_folder(root, split)
        self.classes, loose = _scan(self._folder)
        problems = []
        if loose:
            problems.append(
                f"{len(loose)} images lie outside of class folders ({loose[0]} for one); the layout is "
                f"{split}/CLASS/IMAGE, with a folder for each class, also for validation"
            )
        elif not self.classes:
            problems.append(f"it holds no class folders; the layout is {split}/CLASS/IMAGE")
        names: list[bytes] = []
        labels: list[np.ndarray] = []
        for label, class_name in enumerate(self.classes):
            nested, found = _scan(self._folder / class_name)
            if nested:
                problems.append(
                    f"{class_name} holds the folder {nested[0]}; images lie right in their class folder: move them "
                    "there, or move the folder away"
                )
            elif not found:
                problems.append(f"{class_name} has no images ({', '.join(_ENDINGS)}); add some or remove the folder")
            names += map(os.fsencode, found)
            labels.append(np.full(len(found), label, np.int64))
        if problems:
            more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
            listing = "\n  ".join(problems[:_LISTED] + more)
            raise DataError(f"{self._folder} cannot be used:\n  {listing}")
        self.labels = np.concatenate(labels)
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._ends = np.cumsum([len(name) for name in names])
        self.fingerprint = self._hash()

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The path of an image below the root of the data."""
        start = self._ends[index - 1] if index else 0
        file_name = os.fsdecode(self._names[start : self._ends[index]].tobytes())
        return f"{self._folder.name}/{self.classes[self.labels[index]]}/{file_name}"

    def read(self, index: int) -> bytes:
        """The bytes of an image file. Raises DataError naming a file that cannot be read."""
        path = self._folder.parent / self.name(index)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; was the data changed during the run?") from None

    def _hash(self) -> str:
        """SHA-256 over class names, the number of images of each, and all file names."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        digest.update(np.bincount(self.labels, minlength=len(self.classes)).astype("<i8").tobytes())
        digest.update(self._ends.astype("<i8").tobytes())
        digest.update(self._names.tobytes())
        return digest.hexdigest()


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give the folder that holds train/ and val/ with --data DIR")
    splits, _ = _scan(root)
    if split not in splits:
        there = f"it holds {', '.join(splits[:10])}" if splits else "it holds no folders"
        raise DataError(f"{root} has no split {split!r} ({there}); its splits are folders such as train/ and val/")
    return root / split


def _scan(folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """The sorted names of the folders and of the images in a folder, without hidden ones."""
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # The type of an entry that looks like an image is not asked for: it costs a system call on some disks.
                if _is_image(entry.name):
                    images.append(entry.name)
                elif entry.is_dir():
                    folders.append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}; make it readable for this user") from None
    return tuple(sorted(folders)), sorted(images)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)
