"""The files of photographs: which files are photos that can be decoded, and the digests of their contents."""

import hashlib
import json
import os
import time
import warnings
import zlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import PIL

from seresnext.data.decode.kinds import HAS_HEIC
from seresnext.data.decode.pillow import Decoding, decode, open_image
from seresnext.data.readers.folder import other_kind, walk
from seresnext.data.readers.index_cache import index_path, kept_in, locked
from seresnext.errors import DataError
from seresnext.files import read_image, write_atomically
from seresnext.progress import progress
from seresnext.recipe.schema import DataSection

_THREADS, _TASKS = 8, 1000  # The tasks are those that Ctrl-C waits for.
# Larger images are not decoded here: the images of all threads would take too much memory.
_MOST_PIXELS: int = DataSection.model_fields["max_pixels"].default
_NEW_NS = 2_100_000_000  # A file of this age may change once more without a new time.


class PhotoFile(NamedTuple):
    """A file: size in bytes, and time of the last change in nanoseconds since 1970, -1 for a file to read again.

    A photo that can be decoded has the digest of its content: the first 16 bytes of SHA-256, hexadecimal. Another photo
    has the `problem`. A file that is no image has the `kind` of the content in words, and the `ending` of the name.
    """

    size: int
    modified: int
    digest: str = ""
    problem: str = ""
    kind: str = ""
    ending: str = ""


def read_photo_files(
    root: Path, base: Path, listed: Collection[str], cache: Path | None, max_pixels: int
) -> dict[str, PhotoFile]:
    """Return the files of the data `root` by path below the folder `base`: the `listed` paths, or else all, sorted.

    Each start compares size and time of all files, and reads new and changed files only. One process of the machine
    reads. The folder `cache` keeps the facts; other decoders and limits of pixels have other facts.
    """
    kind = f"photos-{PIL.__version__}{'-heic' * HAS_HEIC}-{max_pixels}"
    path = index_path(cache, kind, root, "").with_suffix(".json")
    with locked(path):
        known, start = _known_files(path), len(f"{base}/")
        paths = listed or sorted(file[start:] for file in walk(f"{base}/"))
        states = {name: _state(os.path.join(base, name)) for name in paths}  # noqa: PTH118 (pathlib takes longer)
        files = {name: file for name, file in known.items() if states.get(name) == file[:2]}
        new, look = [name for name in states if name not in files], partial(_look, base, states, max_pixels)
        pool = ThreadPoolExecutor(_THREADS)
        with progress("photos", len(new)) as advance, warnings.catch_warnings(action="ignore"), pool:
            for place in range(0, len(new), _TASKS):
                part = new[place : place + _TASKS]
                files |= zip(part, pool.map(look, part), strict=True)
                advance(len(part))
        if files != known:
            text = json.dumps(files)
            with kept_in(path.parent):
                write_atomically(path, f"{zlib.crc32(text.encode())}\n{text}")
    return {name: files[name] for name in states}


def _known_files(path: Path) -> dict[str, PhotoFile]:
    """Return the files of the last start. A damaged record counts as none."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        checksum, text = path.read_text().split("\n")
        if int(checksum) == zlib.crc32(text.encode()):
            return {name: PhotoFile(*facts) for name, facts in json.loads(text).items()}
    return {}


def _state(path: str) -> tuple[int, int]:
    """Return size and time of a file, zeros for a file that cannot be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 (pathlib takes twice the time)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _look(base: Path, states: Mapping[str, tuple[int, int]], max_pixels: int, name: str) -> PhotoFile:
    """Read a file, and return the facts."""
    path, (size, modified) = str(base / name), states[name]
    # Some file systems have times that are always now.
    file = PhotoFile(size, modified if modified < time.time_ns() - _NEW_NS else -1)
    if other := other_kind(path):
        return file._replace(kind=other[0], ending=other[1])
    try:
        data = read_image(path)
        _check(data, max_pixels)
    except OSError as error:
        return file._replace(problem=f"cannot be read ({error.strerror})")
    except DataError as error:
        reason = str(error).removeprefix(path).strip()
        return file._replace(problem=reason if "pip install" in reason else reason.partition("; ")[0])
    return file._replace(digest=hashlib.sha256(data).digest()[:16].hex())


def _check(data: bytes, max_pixels: int) -> None:
    """Raise DataError for an image that cannot be decoded. A baseline JPEG is decoded at an eighth of the size."""
    with suppress(Exception):  # `decode` decides, and has the message.
        image = open_image(data)
        pixels = image.width * image.height
        if _MOST_PIXELS < pixels <= max_pixels:
            return
        if pixels <= max_pixels and image.format == "JPEG" and "progressive" not in image.info:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
            return
    decode(data, "", Decoding(max_pixels))
