"""The files of photographs: content digests, and which files are photos, kept in an index by path, size and time."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seresnext.data.decode.kinds import HAS_HEIC, kind_of
from seresnext.data.decode.pillow import Decoding, decode, open_image
from seresnext.data.readers.files import read_head, read_image
from seresnext.data.readers.folder import has_image_ending, kind_in_words, list_names
from seresnext.data.readers.index import DIGEST_BYTES, Index, IndexColumns, Names, NotAnIndex
from seresnext.data.readers.index_cache import Signature, index_path, open_or_build, sign
from seresnext.errors import DataError
from seresnext.progress import progress
from seresnext.recipe.schema import DataSection

GOOD = ""
"""The verdict on a photo that can be decoded."""

NO_IMAGE = "no image"
"""The start of the verdict on a file that is no image. The kind in words and the ending follow, with tabs between."""

_THREADS = 16
# The pixels of larger images are not checked here: 16 threads would take too much memory.
_CHECKED_PIXELS: int = DataSection.model_fields["max_pixels"].default
_NO_DIGEST = bytes(DIGEST_BYTES)


class _Facts(NamedTuple):
    """The facts about a file: the verdict, and the digest of the content (zeros if the file is no image)."""

    verdict: str
    digest: bytes


def open_photo_index(base: Path, root: Path, list_paths: Callable[[], list[str]], cache: Path | None) -> Index:
    """Return the index of the files of the data `root`: in place of class names, the verdicts on files.

    `list_paths` returns paths below the folder `base`, sorted. Each start compares size and time of each file. Only new
    and changed files are read. One process of the machine reads, the others wait.
    """
    path = index_path(cache, "photos", root, "")
    return open_or_build(
        path,
        lambda: _signature(base, list_paths()),
        lambda: _read_files(base, list_paths(), _newest_index(path)),
    )


def walk(root: Path) -> list[str]:
    """Return the paths of all files below a folder, sorted, without hidden names.

    Links to folders are followed, except to a folder above the link. Raises DataError for a folder that cannot be read.
    """
    found, stack = [], [("", frozenset[str]())]
    while stack:
        folder, above = stack.pop()
        place = os.path.realpath(root / folder)
        if place in above:
            continue
        folders, files = list_names(root / folder)
        found += [folder + name for name in files]
        stack += [(f"{folder}{name}/", above | {place}) for name in folders]
    return sorted(found)


def _signature(base: Path, paths: Sequence[str]) -> Signature:
    """Return a signature that changes with any name, size or time of a file."""
    states = _in_threads(partial(_state, base), paths)
    names = hashlib.sha256("\0".join(paths).encode("utf-8", "surrogateescape")).hexdigest()
    content = hashlib.sha256(np.array(states, np.int64).tobytes()).hexdigest()
    newest = max((modified for _, modified in states), default=0)
    # Without the extra, HEIC photos are not photos.
    return sign("photos", names, content, HAS_HEIC, times=())._replace(newest=newest)


def _state(base: Path, path: str) -> tuple[int, int]:
    """Return size and time of a file, zeros for a file that cannot be read."""
    try:
        status = os.stat(f"{base}/{path}")  # noqa: PTH116 (pathlib takes twice the time)
    except OSError:
        return 0, 0
    return status.st_size, max(status.st_mtime_ns, 0)


def _newest_index(path: Path) -> Index | None:
    """Return the index that was written last for a path of `index_path`, if any."""
    with suppress(OSError, ValueError, NotAnIndex):
        return Index.open(max(path.parent.glob(f"{path.stem}-*.index"), key=lambda file: file.stat().st_mtime_ns))
    return None


def _read_files(base: Path, paths: Sequence[str], old: Index | None) -> IndexColumns:
    """Return the index of files. Good photos of the `old` index with the same size and time are not read again."""
    known: dict[str, tuple[int, int, bytes]] = {}
    if old is not None:
        contents, verdicts = old.contents.tobytes(), [verdict == GOOD for verdict in old.classes]
        columns = zip(old.stored_names(), old.label.tolist(), old.size.tolist(), old.modified.tolist(), strict=True)
        for row, (name, label, size, modified) in enumerate(columns):
            if verdicts[label]:
                known[name] = size, modified, contents[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES]
    states = _in_threads(partial(_state, base), paths)
    new = [path for path, state in zip(paths, states, strict=True) if known.get(path, ())[:2] != state]
    with warnings.catch_warnings(action="ignore"), progress("photos", len(new), " photos") as advance:
        read = dict(zip(new, _in_threads(partial(_look, base), new, advance), strict=True))
    facts = [read.get(path) or _Facts(GOOD, known[path][2]) for path in paths]
    names = Names.pack(paths)
    verdicts = dict.fromkeys([GOOD, *sorted({fact.verdict for fact in facts})])
    places = {verdict: place for place, verdict in enumerate(verdicts)}
    sizes = np.array(states, np.int64).reshape(-1, 2)
    return IndexColumns(
        classes=tuple(verdicts),
        fingerprint="",
        label=np.array([places[fact.verdict] for fact in facts], np.int64),
        size=sizes[:, 0],
        modified=sizes[:, 1],
        contents=np.frombuffer(b"".join(fact.digest for fact in facts), np.uint8),
        name_ends=np.cumsum(names.lengths),
        names=np.frombuffer(names.joined, np.uint8),
    )


def _look(base: Path, path: str) -> _Facts:
    """Read a file, and return the facts about the file. Raises nothing but MemoryError."""
    name = f"{base}/{path}"
    head = read_head(name)
    if not has_image_ending(path) and not (head and kind_of(head)):
        return _Facts("\t".join((NO_IMAGE, *kind_in_words(head, path))), _NO_DIGEST)
    try:
        data = read_image(name)
        _check(data)
    except DataError as error:
        return _Facts(str(error), _NO_DIGEST)
    except OSError as error:
        return _Facts(f"cannot be read: {error.strerror}", _NO_DIGEST)
    return _Facts(GOOD, hashlib.sha256(data).digest()[:DIGEST_BYTES])


def _check(data: bytes) -> None:
    """Raise DataError for an image that cannot be decoded. A baseline JPEG is decoded at an eighth of the size."""
    with suppress(Exception):  # `decode` has the message for a bad image.
        image = open_image(data)
        if image.width * image.height > _CHECKED_PIXELS:
            return
        if image.format == "JPEG" and "progressive" not in image.info:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
            return
    decode(data, "", Decoding(_CHECKED_PIXELS))


def _in_threads(work: Callable, items: Sequence[str], advance: Callable[[int], None] | None = None) -> list:
    """Return the results of `work` for items, in order. The threads take long parts: a task costs 20 microseconds."""
    size = max(1, min(256, len(items) // _THREADS))

    def do(start: int) -> list:
        return [work(item) for item in items[start : start + size]]

    results: list = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(do, range(0, len(items), size)):
            results += part
            if advance:
                advance(len(part))
    return results
