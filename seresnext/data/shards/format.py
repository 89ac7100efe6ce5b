"""The files of a folder of shards, as `seresnext prepare shards` writes them.

`*.tar` has the layout of WebDataset (`KEY.jpg` and `KEY.cls`, the label in digits). `index.json` has classes, options
and the SHA-256 of all files, `index.npy` the offset, label and CRC-32 of each image.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from seresnext.data.decode.kinds import ENDINGS
from seresnext.data.readers.tarfiles import Member, ReadAt, members
from seresnext.errors import DataError
from seresnext.files import LARGEST_IMAGE, open_regular, read_piece

MANIFEST = "index.json"
INDEX = "index.npy"
ENTRY = np.dtype([("offset", "<u4"), ("size", "<u4"), ("crc32", "<u4"), ("shard", "<u2"), ("label", "<u2")])
"""An image: offset in the shard, size in bytes, CRC-32 of the bytes, shard number, label. 20 MB for ImageNet."""

LARGEST_SHARD = 2**32 - 1
MOST_PARTS = 2**16  # shards, and classes

MOST_MANIFEST_BYTES = 64 << 20  # most bytes of `index.json`; 65,536 shards and as many classes need less.

_FORMAT = "seresnext-shards-1"
_IMAGES = frozenset(ending[1:] for endings in ENDINGS.values() for ending in endings)
_MOST_DIGITS = 5


_Number = Annotated[int, Field(ge=0, le=LARGEST_SHARD)]
# Checksums become names of files in the cache folder.
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Shard:
    """One tar file: name, size in bytes, number of images, and SHA-256."""

    name: str
    bytes: _Number
    images: _Number
    sha256: _Sha256


@dataclass(frozen=True)
class Manifest:
    """The contents of `index.json`. `options` of `seresnext prepare shards` made the shards."""

    classes: Annotated[tuple[str, ...], Field(max_length=MOST_PARTS)]
    shards: Annotated[tuple[Shard, ...], Field(max_length=MOST_PARTS)]
    index_sha256: _Sha256
    options: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of classes, shards and index: the images and their order."""
        facts = [self.classes, [vars(shard) for shard in self.shards], self.index_sha256]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def num_images(self) -> int:
        """The number of images in all shards."""
        return sum(shard.images for shard in self.shards)

    def to_text(self) -> str:
        """Return the text of `index.json`, the same for the same contents."""
        head = {"format": _FORMAT, "fingerprint": self.fingerprint, "num_images": self.num_images}
        return json.dumps(head | asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes, where: str) -> Manifest:
        """Read `index.json`. Raises DataError naming `where` for a damaged index or another version."""
        try:
            if len(text) > MOST_MANIFEST_BYTES:
                raise ValueError(f"more than {MOST_MANIFEST_BYTES} bytes")
            fields = json.loads(text)
            if fields["format"] != _FORMAT:
                raise DataError(f"{where} has the format {fields['format']!r:.60}, not {_FORMAT!r}; prepare again")
            manifest = _MANIFEST.validate_json(text, strict=True)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            problem = error.errors()[0] if isinstance(error, ValidationError) else error
            raise DataError(f"{where} is no index of shards ({problem!a:.200}); get the file again") from None
        for shard in manifest.shards:
            name = shard.name
            if posixpath.basename(name) != name or not name.endswith(".tar") or not name.isprintable():
                raise DataError(f"{where} names the shard {name!a:.200}; a shard is a .tar file beside the index")
        if manifest.fingerprint != fields.get("fingerprint"):
            raise DataError(f"{where} was changed after it was written (another fingerprint); prepare the shards again")
        return manifest


_MANIFEST = TypeAdapter(Manifest)


def list_shard(path: Path, num_classes: int) -> tuple[Shard, np.ndarray]:
    """Return a shard, and the images of the shard (ENTRY) in order.

    Raises DataError naming a file that cannot be read, a member that is hostile, cut off or duplicate
    (readers/tarfiles.py), an image without label, a label without image, or a label out of range.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_SHARD:
                raise DataError(f"{path} has {size} bytes, and a shard has at most 4 GiB; write smaller shards")
            read = partial(read_piece, file.fileno())
            listing = [_entry(*item, read, num_classes, path) for item in _by_key(read, size, path).items()]
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; get the shard again") from None
    return Shard(path.name, size, len(listing), sha256), np.array(listing, ENTRY)


def _by_key(read: ReadAt, size: int, path: Path) -> dict[str, dict[str, Member]]:
    """Return the members of each key, by kind: image, cls, or another ending."""
    found: dict[str, dict[str, Member]] = {}
    for member in members(read, 0, size, str(path)):
        folder, name = posixpath.split(member.name)
        stem, _, ending = name.partition(".")
        key = posixpath.join(folder, stem)
        kind = "image" if ending.lower() in _IMAGES else ending.lower()
        if kind in found.setdefault(key, {}):
            raise DataError(f"{path}: member {member.name!r} is a second {kind} of the key {key!r}; remove one")
        found[key][kind] = member
    return found


def _entry(
    key: str, by_kind: dict[str, Member], read: ReadAt, num_classes: int, path: Path
) -> tuple[int, int, int, int, int]:
    image, label = by_kind.get("image"), by_kind.get("cls")
    first = next(iter(by_kind.values()))
    if image is None:
        raise DataError(f"{path}: member {first.name!r} has no image; add {key}.jpg or {key}.png")
    if label is None:
        raise DataError(f"{path}: member {image.name!r} has no label; add {key}.cls")
    text = read(label.offset, label.size).strip() if label.size <= 2 * _MOST_DIGITS else b""
    if not (text.isdigit() and len(text) <= _MOST_DIGITS and int(text) < num_classes):
        raise DataError(f"{path}: member {label.name!r} has the label {text!r}; write one of 0 to {num_classes - 1}")
    return image.offset, image.size, zlib.crc32(read(image.offset, image.size)), 0, int(text)


def index_bytes(listings: Sequence[np.ndarray]) -> bytes:
    """Return the contents of `index.npy` for the images of all shards."""
    entries = np.concatenate(listings)
    entries["shard"] = np.repeat(np.arange(len(listings)), [len(listing) for listing in listings])
    return _index_header(len(entries)) + entries.tobytes()


def index_size(num_images: int) -> int:
    """Return the size of an `index.npy` in bytes."""
    return len(_index_header(num_images)) + num_images * ENTRY.itemsize


def _index_header(num_images: int) -> bytes:
    buffer = io.BytesIO()
    fields = {"descr": ENTRY.descr, "fortran_order": False, "shape": (num_images,)}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def open_index(path: Path, manifest: Manifest, where: str) -> np.ndarray:
    """Map the images of an `index.npy` (ENTRY). Raises DataError naming `where` for the file of another manifest.

    `numpy.load` would evaluate the header as Python.
    """
    header = _index_header(manifest.num_images)
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size != index_size(manifest.num_images):
                raise ValueError(f"not the size of {manifest.num_images} images")
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest.index_sha256:
                raise ValueError(f"not the checksum in {MANIFEST}")
            file.seek(0)
            if file.read(len(header)) != header:
                raise ValueError("no list of images")
            if not manifest.num_images:
                raise ValueError("no images")
            # A plain array: access to an entry of a memmap takes several times as long.
            index = np.asarray(np.memmap(file, ENTRY, "r", len(header)))
        # A hostile file can have the right checksum, too.
        counts = np.bincount(index["shard"], minlength=len(manifest.shards)).tolist()
        if counts != [shard.images for shard in manifest.shards]:
            raise ValueError("other numbers of images in the shards")
        if (size := int(index["size"].max())) > LARGEST_IMAGE:
            raise ValueError(f"an image of {size} bytes, more than {LARGEST_IMAGE}")
        if index["label"].max() >= len(manifest.classes):
            raise ValueError(f"a label beyond the {len(manifest.classes)} classes")
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}; get the file again") from None
    except ValueError as error:
        raise DataError(f"{where} is damaged or of other shards ({error}); get {MANIFEST} and {INDEX} again") from None
    return index
