"""A look at the images of a split at each start: which are turned by EXIF, or no images at all.

The survey parses headers. Pillow decodes only images that look cut off, and decides about these. Other formats than
JPEG and PNG have no mark of their end, and are always decoded, except photos, which the reader has decoded.
"""

import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from PIL import Image

from seresnext.data.decode.jpeg import has_many_scans
from seresnext.data.decode.pillow import Decoding, decode, open_image, orientation_of
from seresnext.data.readers import Reader
from seresnext.errors import DataError

# The largest number of images of a split that are looked at, evenly spaced.
_MOST_IMAGES = 1000
_THREADS = 16
_MOST_SECONDS = 30.0
_ALWAYS_TURNED = ("TIFF", "HEIF")
_EFFECT = "have an EXIF orientation and are used as stored; a run with data.exif_rotation=true turns these images"


class Survey(NamedTuple):
    """The result: number of images in the split (`total`) and of images looked at (`seen`).

    `turned` are the indices of images that the decoding does not turn, `errors` the messages for images that cannot be
    used.
    """

    total: int
    seen: int
    turned: tuple[int, ...]
    errors: tuple[str, ...]


def survey(reader: Reader, decoding: Decoding, finds_errors: bool = True) -> Survey:
    """Look at up to 1,000 images, for half a minute at most. All threads end before this returns.

    Without `finds_errors`, no image is decoded.
    """
    count = min(len(reader), _MOST_IMAGES)
    indices = [number * len(reader) // count for number in range(count)]
    deadline = time.monotonic() + _MOST_SECONDS
    # Broken EXIF makes Pillow warn. The filters are set once for all threads.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(partial(_look, reader, decoding, deadline), indices))
    seen = {index: facts for index, facts in zip(indices, found, strict=True) if facts}
    errors = []
    for index, (_, is_doubtful) in seen.items():
        # One at a time: a hostile image may take much memory and time.
        if finds_errors and is_doubtful and time.monotonic() < deadline:
            try:
                decode(reader.read(index), reader.name(index), decoding)
            except DataError as error:
                errors.append(str(error))
    return Survey(len(reader), len(seen), tuple(index for index, (turned, _) in seen.items() if turned), tuple(errors))


def _look(reader: Reader, decoding: Decoding, deadline: float, index: int) -> tuple[bool, bool] | None:
    """Return whether an image is turned, and whether it may be broken; None after the deadline."""
    if time.monotonic() > deadline:
        return None
    try:
        data = reader.read(index)
        image = open_image(data)
        # A reader of photos has decoded each image once.
        is_doubtful = image.width * image.height > decoding.max_pixels or (
            reader.choice is None and _may_be_broken(image, data)
        )
        return not decoding.exif_rotation and is_turned(image, data), is_doubtful
    except Exception:  # A hostile file may cause any exception. The decoder decides.
        return False, True


def is_turned(image: Image.Image, data: bytes) -> bool:
    """Return whether only EXIF turns or mirrors an opened image, before the decode. `data` are the bytes of the file.

    Pillow turns a TIFF and libheif a HEIC in any case. Raises nothing.
    """
    if image.format == "PNG" and "exif" not in image.info and (place := data.rfind(b"eXIf")) > 0:
        # The part behind the pixels, which only a decode would read.
        image.info["exif"] = data[place + 4 :][: int.from_bytes(data[place - 4 : place])]
    return image.format not in _ALWAYS_TURNED and orientation_of(image) > 1


def _may_be_broken(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return b"IEND" not in data
    if image.format not in ("JPEG", "MPO"):
        return True
    # A thumbnail has an end mark, too, before the scans of the main image.
    return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda") or has_many_scans(data)


def describe(surveys: Mapping[str, Survey], readers: Mapping[str, Reader]) -> str | None:
    """Return a warning about the turned images of splits, by the splits' names, or None."""
    counted = []
    for split, result in surveys.items():
        if result.turned:
            of = f" looked at (of {result.total:,})" if result.seen < result.total else ""
            example = readers[split].name(result.turned[0])
            counted.append(f"{len(result.turned):,} of {result.seen:,} {split} images{of}, such as {example},")
    return f"{' and '.join(counted)} {_EFFECT}" if counted else None
