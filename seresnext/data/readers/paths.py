"""Images by path: files, folders, patterns and lists of paths, in the order in which a user gives them."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from seresnext.data.readers import Reader
from seresnext.data.readers.folder import counted, other_kind, walk
from seresnext.data.readers.index import join_names, name_at
from seresnext.errors import DataError
from seresnext.files import read_image
from seresnext.progress import warn


class PathReader(Reader):
    """Image files in a given order. A path may occur twice. All labels are 0.

    The paths are below the folder `base`, if there is one. `advice` is for a file that cannot be read. The paths are
    kept as bytes: reference counting would copy a million Python strings into every worker.
    """

    classes = ()
    fingerprint = ""

    def __init__(self, paths: Iterable[str], base: str = "", advice: str = "correct the path") -> None:
        self._base, self._advice = base, advice
        self._joined, self._ends = join_names(paths)
        self.labels = np.zeros(len(self._ends), np.int8)

    def name(self, index: int) -> str:
        """Return the path of an image as the user gave it."""
        return name_at(self._joined, self._ends, index)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file. Raises DataError naming a file that cannot be read."""
        path = os.path.join(self._base, self.name(index))  # noqa: PTH118 (a path of a list may be absolute)
        try:
            return read_image(path)
        except (OSError, ValueError) as error:  # ValueError: the path has a NUL character.
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path} cannot be read: {reason}; {self._advice}") from None


def expand(words: Iterable[str], lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the paths of images for the words of a command: files, folders, patterns such as `**/*.jpg`, and `-`.

    A folder stands for all images below, `-` for the paths in `lines`. Raises DataError where there is no image.
    """
    for word in words:
        if word == "-":
            listed = (os.fsdecode(line).rstrip("\r\n") for line in lines)
            for path in filter(None, listed):
                yield from _below(path)
        elif glob.has_magic(word) and not os.path.lexists(word):
            found = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 (pathlib shortens `./a`)
            if "**" in word:  # The pattern matches each folder, and also the files in the folder.
                found = [path for path in found if not os.path.isdir(path)]  # noqa: PTH112
            if not found:
                raise DataError(f"{word} matches no file; correct the pattern")
            for path in found:
                yield from _below(path)
        else:
            yield from _below(word)


def _below(path: str) -> Iterator[str]:
    """Yield a file, or the images below a folder. Links to folders are followed, except to a folder above the link."""
    if not os.path.isdir(path):  # noqa: PTH112 (raises nothing)
        yield path
        return
    count, others = 0, Counter[tuple[str, str]]()
    for file in walk(path):
        if (kind := other_kind(file)) is None:
            count += 1
            yield file
        else:
            others[kind] += 1
    if not count:
        there = f" ({counted(others)})" if others else ""
        raise DataError(f"{path} has no images{there}; give a folder of images")
    if others:
        warn(f"{path}: skipped files: {counted(others)}")
