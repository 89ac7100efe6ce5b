"""The files of photographs: content digests, and which files are photos, in an index by path, size and time."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from seresnext.data.decode.kinds import HAS_HEIC
from seresnext.data.decode.pillow import Decoding, decode, open_image
from seresnext.data.readers.files import read_image
from seresnext.data.readers.folder import other_kind, walk
from seresnext.data.readers.index import DIGEST_BYTES, Index, IndexColumns, Names, NotAnIndex
from seresnext.data.readers.index_cache import Signature, index_path, open_or_build, sign
from seresnext.errors import DataError
from seresnext.progress import progress
from seresnext.recipe.schema import DataSection

NO_IMAGE = "no image"
"""The start of the verdict on a file that is no image. The kind in words and the ending follow, with tabs between."""

_GOOD = ""  # the verdict on a photo that can be decoded
_THREADS, _TASKS = 8, 1000  # The tasks are those that Ctrl-C waits for.
# Larger images are not decoded here: the images of all threads would take too much memory.
_MOST_PIXELS: int = DataSection.model_fields["max_pixels"].default
_NEW_NS = 2_100_000_000  # A file of this age may change once more without a new time.


def open_photo_index(root: Path, base: Path, listed: Sequence[str], cache: Path | None) -> Index:
    """Return the index of the files of the data `root`. In place of classes the index has the verdicts on files.

    The files are the `listed` paths below the folder `base`, or else all files below `base`. The verdict on a good
    photo is an empty text. Each start compares size and time of all files, and reads new and changed files only. One
    process of the machine reads.
    """
    path, start = index_path(cache, "photos", root, ""), len(f"{base}/")

    def paths() -> Sequence[str]:
        return listed or sorted(file[start:] for file in walk(f"{base}/"))

    def signature() -> Signature:
        names = paths()
        states = _states(base, names)
        newest = max((modified for _, modified in states), default=0)
        return sign("photos", HAS_HEIC, PIL.__version__, names, states, times=())._replace(newest=newest)

    return open_or_build(path, signature, lambda: _read_files(base, paths(), _good_photos(path)))


def _states(base: Path, paths: Sequence[str]) -> list[tuple[int, int]]:
    """Return size and time of each file, zeros for a file that cannot be read."""
    states = []
    for path in paths:
        try:
            status = os.stat(os.path.join(base, path))  # noqa: PTH116, PTH118 (pathlib takes twice the time)
        except OSError:
            states.append((0, 0))
        else:
            states.append((status.st_size, max(status.st_mtime_ns, 0)))
    return states


def _good_photos(path: Path) -> dict[str, tuple[tuple[int, int], bytes]]:
    """Return state and digest of each good photo of the index that was written last for a path of `index_path`."""
    with suppress(OSError, ValueError, NotAnIndex):
        index = Index.open(max(path.parent.glob(f"{path.stem}-*.index"), key=lambda file: file.stat().st_mtime_ns))
        states = zip(index.size.tolist(), index.modified.tolist(), strict=True)
        rows = zip(index.stored_names(), states, index.digests(), index.label, strict=True)
        return {name: (state, digest) for name, state, digest, label in rows if index.classes[label] == _GOOD}
    return {}


def _read_files(base: Path, paths: Sequence[str], known: dict[str, tuple[tuple[int, int], bytes]]) -> IndexColumns:
    """Return the index of files. Files that are `known` with the same state are not read again."""
    states = _states(base, paths)
    new = [path for path, state in zip(paths, states, strict=True) if path not in known or known[path][0] != state]
    facts = {path: (_GOOD, digest) for path, (_, digest) in known.items()}
    pool = ThreadPoolExecutor(_THREADS)
    with progress("photos", len(new)) as advance, warnings.catch_warnings(action="ignore"), pool:
        for start in range(0, len(new), _TASKS):
            part = new[start : start + _TASKS]
            facts |= zip(part, pool.map(partial(_look, base), part), strict=True)
            advance(len(part))
    verdicts = sorted({_GOOD, *(facts[path][0] for path in paths)})
    places = {verdict: place for place, verdict in enumerate(verdicts)}
    names, now = Names.pack(paths), time.time_ns()
    return IndexColumns(
        classes=tuple(verdicts),
        fingerprint="",
        label=np.array([places[facts[path][0]] for path in paths], np.int64),
        size=np.array([size for size, _ in states], np.int64),
        # Some file systems have times that are always now. Time 0 is read again.
        modified=np.array([modified if modified < now - _NEW_NS else 0 for _, modified in states], np.int64),
        contents=np.frombuffer(b"".join(facts[path][1] for path in paths), np.uint8),
        name_ends=np.cumsum(names.lengths),
        names=np.frombuffer(names.joined, np.uint8),
    )


def _look(base: Path, path: str) -> tuple[str, bytes]:
    """Read a file. Return the verdict on the file, and the digest of the content, zeros if the photo is not good."""
    name, none = str(base / path), bytes(DIGEST_BYTES)
    if kind := other_kind(name):
        return "\t".join((NO_IMAGE, *kind)), none
    try:
        data = read_image(name)
        _check(data)
    except (DataError, OSError) as error:
        reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        reason = reason.removeprefix(name).strip()
        return reason if "pip install" in reason else reason.partition("; ")[0], none
    return _GOOD, hashlib.sha256(data).digest()[:DIGEST_BYTES]


def _check(data: bytes) -> None:
    """Raise DataError for an image that cannot be decoded. A baseline JPEG is decoded at an eighth of the size."""
    with suppress(Exception):  # `decode` decides, and has the message.
        image = open_image(data)
        if image.width * image.height > _MOST_PIXELS:
            return
        if image.format == "JPEG" and "progressive" not in image.info:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
            return
    decode(data, "", Decoding(_MOST_PIXELS))
