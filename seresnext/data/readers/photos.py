"""Photographs as people have them: class folders without splits, split folders, nested folders, and lists."""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seresnext.data.readers import Reader
from seresnext.data.readers.files import read_image
from seresnext.data.readers.folder import skipped_files
from seresnext.data.readers.index import Index
from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.data.readers.photo_files import NO_IMAGE, open_photo_index
from seresnext.data.readers.photo_list import SPLIT_NAMES, read_photo_list
from seresnext.errors import DataError
from seresnext.paths import check_data_folder, is_list
from seresnext.printable import as_utf8, listed, printable

ALL = "all"
"""The name of the split with all photos."""

_LISTED = 10


@dataclass(slots=True)
class _Row:
    """A photo: the path, the place in the index, the digest of the content, the class and the split."""

    path: str
    place: int
    digest: bytes
    label: str = ""
    split: str = "train"


class PhotoReader(Reader):
    """One split of photographs: a folder of class folders, of splits of class folders, or a list.

    The class is the first folder below the root or below the split. `valid` and `validation` mean val. Data without
    validation photos is divided by `choice.val_share`. The split ALL is all photos. Files that cannot be decoded are
    left out, and `notices` names these files. The photos are sorted by class and path. Raises DataError.

    `choice.kept` has the splits that are not by the hash, also of photos that became such in this listing.
    """

    def __init__(self, root: Path, split: str, choice: PhotoChoice | None = None, cache: Path | None = None) -> None:
        check_data_folder(str(root))
        choice, wanted, notices = choice or PhotoChoice(), SPLIT_NAMES.get(split, split), []
        listing = read_photo_list(root) if is_list(root) else {}
        self._base = root.parent if listing else root
        self._index = open_photo_index(root, self._base, list(listing), cache)
        good, self.left_out = _good_photos(self._index, choice, notices)
        for row in good if listing else ():
            row.label, row.split = listing[row.path]
        rows = _chosen(good if listing else _in_folders(good, wanted, notices), choice, notices)
        self.is_divided = choice.val_share is not None and all(row.split != "val" for row in rows)
        self.choice = divide(rows, choice) if self.is_divided else choice
        chosen = sorted((row for row in rows if wanted in (row.split, ALL)), key=lambda row: (row.label, row.path))
        if not chosen:
            raise _no_photos(root, split, rows, choice)
        of = {name: {row.label for row in rows if row.split == name} for name in ("train", "val")}
        if of["val"] and (without := sorted(of["train"] - of["val"])):
            names = ", ".join(printable(name) for name in listed(without, _LISTED))
            notices.append(f"{_counted(len(without), 'class has', 'classes have')} no validation images: {names}")
        self.classes = tuple(sorted(of["train"] | {row.label for row in chosen}))
        places = {label: place for place, label in enumerate(self.classes)}
        self.labels = np.array([places[row.label] for row in chosen], np.min_scalar_type(len(places)))
        self._places = np.array([row.place for row in chosen])
        self.fingerprint = _fingerprint(self.classes, chosen)
        self.notices = tuple(f"{root}: {notice}" for notice in notices)

    def name(self, index: int) -> str:
        """Return the path of a photo below the root, or as in the list."""
        return self._index.stored_name(int(self._places[index]))

    def read(self, index: int) -> bytes:
        """Return the bytes of a photo. Raises DataError naming a file that cannot be read."""
        path = os.path.join(self._base, self.name(index))  # noqa: PTH118 (a path of a list may be absolute)
        try:
            return read_image(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; restore the file, or start again") from None


def split_table(train: Reader, val: Reader) -> str:
    """Return `split.csv` of a run: path, label and split of each photo."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    for split, reader in (("train", train), ("val", val)):
        for index, label in enumerate(reader.labels):
            writer.writerow((as_utf8(reader.name(index)), as_utf8(reader.classes[label]), split))
    return text.getvalue()


def divide(rows: Sequence[_Row], choice: PhotoChoice) -> PhotoChoice:
    """Divide the training photos of the rows. Return the choice with all splits that are not by the hash.

    A photo becomes a validation photo if the hash is below `choice.val_share`. Then a class without a validation photo
    gives the lowest hash, and a class without a training photo keeps the highest, so that a single photo stays in
    training.
    """
    assert choice.val_share is not None
    rows = [row for row in rows if row.split == "train"]
    hashes = {row.digest: fraction_of(row.digest, choice.seed) for row in rows}
    kept, split = dict(choice.kept), {}
    for digest, fraction in hashes.items():
        split[digest] = kept.get(digest.hex(), "val" if fraction < choice.val_share else "train")
    members: dict[str, set[bytes]] = {}
    for row in rows:
        members.setdefault(row.label, set()).add(row.digest)
    rules: tuple[tuple[Literal["val", "train"], Any, int], ...] = (("val", min, 2), ("train", max, 1))
    for missing, pick, least in rules:
        for _, digests in sorted(members.items()):
            if len(digests) >= least and all(split[digest] != missing for digest in digests):
                chosen = pick(digests, key=hashes.__getitem__)
                split[chosen] = kept[chosen.hex()] = missing
    for row in rows:
        row.split = split[row.digest]
    return choice.model_copy(update={"kept": kept})


def fraction_of(digest: bytes, seed: int) -> float:
    """Return the hash of a photo, from 0 to 1: BLAKE2b of the digest in 8 bytes, with the seed as the key."""
    hashed = hashlib.blake2b(digest, digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(hashed, "big") / 2**64


def _good_photos(index: Index, choice: PhotoChoice, notices: list[str]) -> tuple[list[_Row], tuple[str, ...]]:
    """Return the photos that can be decoded and are not ignored, and those that cannot. Report the other files."""
    names, good, bad, others = index.stored_names(), [], [], Counter[tuple[str, str]]()
    ignored: set[str] = set()
    for pattern in choice.ignore:
        match = re.compile(fnmatch.translate(pattern)).match
        found = {name for name in names if match(name) or any(map(match, name.split("/")))}
        _report_unused("data.ignore", [pattern] if not found else [], choice, notices)
        ignored |= found
    for place, (path, label, digest) in enumerate(zip(names, index.label.tolist(), index.digests(), strict=True)):
        verdict = index.classes[label]
        if path in ignored:
            continue
        if not verdict:
            good.append(_Row(path, place, digest))
        elif verdict.startswith(NO_IMAGE):
            _, kind, ending = verdict.split("\t")
            others[kind, ending] += 1
        else:
            bad.append(f"{printable(path)} {verdict}")
    if others:
        notices.append(skipped_files(others))
    if bad:
        heading = f"{_counted(len(bad), 'unreadable photo is', 'unreadable photos are')} left out:"
        notices.append("\n  ".join([heading, *listed(bad, _LISTED)]))
    return good, tuple(bad)


def _in_folders(photos: Sequence[_Row], wanted: str, notices: list[str]) -> list[_Row]:
    """Return the photos in class folders, or in the class folders of splits."""
    parts = [row.path.split("/") for row in photos]
    folders = {each[0] for each in parts if len(each) > 1}
    splits = {wanted: wanted} if wanted in folders else {}
    for known, split in SPLIT_NAMES.items():  # `valid` does not count if there is `val`.
        same = [name for name in sorted(folders) if name.lower() == known and split not in splits.values()]
        splits |= dict.fromkeys(same[:1], split)
    has_splits = not splits.keys().isdisjoint(folders - {each[0] for each in parts if len(each) == 2})
    rows, loose, outside = [], [], []
    for row, each in zip(photos, parts, strict=True):
        if len(each) < 2 + has_splits:
            loose.append(row.path)
        elif has_splits and each[0] not in splits:
            outside.append(row.path)
        else:
            row.label, row.split = each[has_splits], splits[each[0]] if has_splits else "train"
            rows.append(row)
    for paths, place in ((loose, "outside of class folders"), (outside, "outside of splits")):
        if paths and rows:
            what = _counted(len(paths), "photo is", "photos are")
            notices.append(f"{what} {place} and left out, such as {printable(paths[0])}")
    return rows


def _chosen(rows: Sequence[_Row], choice: PhotoChoice, notices: list[str]) -> list[_Row]:
    """Return the rows that are not excluded, with the new names of classes."""
    excluded, new = set(choice.excluded), choice.class_map
    if excluded:
        _report_unused("data.exclude", excluded - {as_utf8(row.path) for row in rows}, choice, notices)
        rows = [row for row in rows if as_utf8(row.path) not in excluded]
    _report_unused("data.class_map", new.keys() - {row.label for row in rows}, choice, notices)
    for row in rows:
        row.label = new[row.label].strip() if row.label in new else row.label
    return [row for row in rows if row.label]


def _report_unused(key: str, names: Collection[str], choice: PhotoChoice, notices: list[str]) -> None:
    """Report the entries of a key that concern no photo. The choice in a checkpoint may be for other data."""
    if names and not choice.is_stored:
        what = _counted(len(names), "entry", "entries")
        notices.append(f"{what} of {key} matched nothing, such as {printable(min(names))}")


def _counted(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _fingerprint(classes: Sequence[str], rows: Sequence[_Row]) -> str:
    """Return the SHA-256 of class names, and of class, path and content of each photo."""
    digest = hashlib.sha256("\0".join(classes).encode("utf-8", "surrogateescape"))
    for row in rows:
        digest.update(f"\0{row.label}\0{row.path}\0".encode("utf-8", "surrogateescape") + row.digest)
    return digest.hexdigest()


def _no_photos(root: Path, split: str, rows: Sequence[_Row], choice: PhotoChoice) -> DataError:
    """Return the error for a split without photos, with the splits that are there."""
    found = Counter(row.split for row in rows)
    there = ", ".join(f"{count:,} {name}" for name, count in sorted(found.items())) or "no photos in class folders"
    advice = "name another split" if rows else "give a folder with a folder for each class, or a list of photos"
    if rows and SPLIT_NAMES.get(split) == "val":
        advice = "add photos" if choice.val_share else "add photos of val, or set data.split='{val: 0.2}'"
    return DataError(f"{root} has no photos of the split {split} (found {there}); {advice}")
