"""Photographs as people have them: class folders without splits, split folders, nested folders, and lists."""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seresnext.data.readers import Reader
from seresnext.data.readers.files import read_image
from seresnext.data.readers.folder import skipped_files
from seresnext.data.readers.index import DIGEST_BYTES, Index
from seresnext.data.readers.index_cache import mark_stale
from seresnext.data.readers.photo_files import GOOD, NO_IMAGE, open_photo_index, walk
from seresnext.data.readers.photo_list import SPLIT_NAMES, read_photo_list
from seresnext.errors import DataError
from seresnext.paths import is_list
from seresnext.printable import as_utf8, listed, printable

ALL = "all"
"""The name of the split with all photos."""

_LISTED = 10


@dataclass(frozen=True)
class PhotoChoice:
    """The photos that count, and the split of each photo.

    `val_share`: the share of validation photos, from 0 to 1, for data without validation photos; the split is a
    function of `seed` and content. `ignore`: patterns of paths. `class_map`: new names of classes; an empty name leaves
    a class out. `excluded`: paths of photos that are left out. `kept`: the split of the photos, by digest, whose split
    is not the split of the hash, because a class would have no photo in a split. `is_stored`: the choice comes from a
    checkpoint, and the data may be other data.
    """

    val_share: float | None = None
    seed: int = 0
    ignore: tuple[str, ...] = ()
    class_map: Mapping[str, str] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    kept: Mapping[str, str] = field(default_factory=dict)
    is_stored: bool = False

    def to_values(self) -> dict[str, Any]:
        """Return the choice as plain JSON data, for a checkpoint."""
        values = {**asdict(self), "ignore": list(self.ignore), "excluded": sorted(self.excluded)}
        del values["is_stored"]
        return values

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> PhotoChoice:
        """Return the choice in a checkpoint that `is_choice` accepts."""
        lists = {"ignore": tuple(values["ignore"]), "excluded": frozenset(values["excluded"])}
        return cls(**{**values, **lists}, is_stored=True)


class _Row(NamedTuple):
    """A photo: the number in the index, the class, and the split (empty: not given)."""

    number: int
    path: str
    label: str
    split: str


class PhotoReader(Reader):
    """One split of photographs: a folder of class folders, of splits of class folders, or a list.

    The class is the first folder below the root or below the split; folders inside do not count. `valid` and
    `validation` mean val. Data without validation photos is divided by `choice.val_share`. The split ALL is all photos.
    Files that cannot be decoded are left out and named in `notices`. The photos are sorted by class and path. Raises
    DataError for data without classes, for a split that is missing, and for all mistakes of a list.

    `choice` has the splits of this listing in `kept`. `table` has a row for each photo of the data.
    """

    def __init__(self, root: Path, split: str, choice: PhotoChoice | None = None, cache: Path | None = None) -> None:
        choice = choice or PhotoChoice()
        listing = {photo.path: photo for photo in read_photo_list(root)} if is_list(root) else None
        if listing is None and not root.is_dir():
            raise DataError(f"there is no folder {root}; give a folder of class folders with --data DIR")
        self._base = root.parent if is_list(root) else root
        self._index = open_photo_index(self._base, root, lambda: list(listing) if listing else walk(root), cache)
        names, notices = self._index.stored_names(), []
        good = _good_files(self._index, names, choice, notices)
        if listing is None:
            rows = _rows_of_folders(root, good, SPLIT_NAMES.get(split, split), notices)
        else:
            rows = [_Row(number, path, listing[path].label, listing[path].split) for number, path in good]
        rows = _mapped(_without_excluded(rows, choice, notices), choice, notices)
        digests = self._index.contents.tobytes()
        digest = lambda row: digests[row.number * DIGEST_BYTES : (row.number + 1) * DIGEST_BYTES]  # noqa: E731
        rows, self.choice = divide(rows, [digest(row) for row in rows], choice)
        train = {row.label for row in rows if row.split == "train"}
        chosen = [row for row in rows if split == ALL or row.split == SPLIT_NAMES.get(split, split)]
        if not chosen:
            raise _no_photos(root, split, rows, [path for _, path in good], self._index, choice)
        self.classes = tuple(sorted(train | {row.label for row in chosen}))
        validated = {row.label for row in rows if row.split == "val"}
        if validated and (without := sorted(train - validated)):
            noun = "class has" if len(without) == 1 else "classes have"
            notices.append(f"{len(without)} {noun} no validation photos: {', '.join(listed(without, _LISTED))}")
        chosen.sort(key=lambda row: (row.label, row.path))
        places = {label: place for place, label in enumerate(self.classes)}
        kind = np.min_scalar_type(len(places))
        self.labels = np.array([places[row.label] for row in chosen], kind)
        self._numbers = np.array([row.number for row in chosen], np.int64)
        self.fingerprint = _fingerprint(self.classes, chosen, map(digest, chosen))
        self.notices = tuple(f"{root}: {notice}" for notice in notices)

    def name(self, index: int) -> str:
        """Return the path of a photo below the root, or as in the list."""
        return self._index.stored_name(int(self._numbers[index]))

    def read(self, index: int) -> bytes:
        """Return the bytes of a photo. Raises DataError naming a file that cannot be read."""
        path = os.path.join(self._base, self.name(index))  # noqa: PTH118 (a path of a list may be absolute)
        try:
            return read_image(path)
        except OSError as error:
            mark_stale(self._index)
            raise DataError(
                f"{path} cannot be read: {error.strerror}; restore the file, or start again to list the photos again"
            ) from None


def split_table(readers: Mapping[str, Reader]) -> str:
    """Return `split.csv` of a run: path, label and split of each photo of the readers, by the names of the splits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    for split, reader in readers.items():
        for index, label in enumerate(reader.labels):
            writer.writerow((as_utf8(reader.name(index)), as_utf8(reader.classes[label]), split))
    return text.getvalue()


def is_choice(values: Any) -> bool:
    """Return whether values from a checkpoint are a choice that a run wrote."""
    if not isinstance(values, dict) or values.keys() != PhotoChoice().to_values().keys():
        return False
    share, seed, maps = values["val_share"], values["seed"], (values["class_map"], values["kept"])
    return (
        (share is None or (isinstance(share, float) and 0 < share < 1))
        and (type(seed) is int and 0 <= seed < 2**63)
        and all(isinstance(values[key], list) for key in ("ignore", "excluded"))
        and all(isinstance(each, dict) for each in maps)
        and all(isinstance(text, str) for key in ("ignore", "excluded") for text in values[key])
        and all(isinstance(text, str) for each in maps for text in each.values())
    )


def divide(rows: Sequence[_Row], digests: Sequence[bytes], choice: PhotoChoice) -> tuple[list[_Row], PhotoChoice]:
    """Return the rows with their splits, and the choice with the splits that are not those of the hash.

    Without validation photos, and with `val_share`, each training photo is a validation photo if the hash of seed and
    content is below the share. A class without one gives the photo with the lowest hash, and a class without training
    photos keeps the photo with the highest. Other rows without a split are training photos.
    """
    rows = [row if row.split else row._replace(split="train") for row in rows]
    if choice.val_share is None or any(row.split == "val" for row in rows):
        return rows, choice
    share, seed = choice.val_share, choice.seed
    ranks = {digest: fraction_of(digest, seed) for digest in set(digests)}
    split = {digest: "val" if rank < share else "train" for digest, rank in ranks.items()}
    kept = dict(choice.kept)
    split |= {digest: kept[digest.hex()] for digest in split if digest.hex() in kept}
    members: dict[str, set[bytes]] = {}
    for row, digest in zip(rows, digests, strict=True):
        if row.split == "train":
            members.setdefault(row.label, set()).add(digest)
    for wanted, pick in (("val", min), ("train", max)):
        for _, photos in sorted(members.items()):
            if (len(photos) > 1 or wanted == "train") and all(split[digest] != wanted for digest in photos):
                chosen = pick(photos, key=ranks.__getitem__)
                split[chosen] = kept[chosen.hex()] = wanted
    divided = [
        row._replace(split=split[digest]) if row.split == "train" else row
        for row, digest in zip(rows, digests, strict=True)
    ]
    return divided, replace(choice, kept=kept)


def fraction_of(digest: bytes, seed: int) -> float:
    """Return the hash of a photo, from 0 to 1: BLAKE2b of the digest in 8 bytes, with the seed as the key."""
    hashed = hashlib.blake2b(digest, digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(hashed, "big") / 2**64


def _good_files(index: Index, names: list[str], choice: PhotoChoice, notices: list[str]) -> list[tuple[int, str]]:
    """Return number and path of each photo that is not ignored. Report unreadable photos and files of other kinds."""
    ignored = _matching(names, choice, notices)
    verdicts, labels = index.classes, index.label.tolist()
    good, bad, others = [], [], Counter[tuple[str, str]]()
    for number, (path, label) in enumerate(zip(names, labels, strict=True)):
        verdict = verdicts[label]
        if path in ignored:
            continue
        if verdict == GOOD:
            good.append((number, path))
        elif verdict.startswith(NO_IMAGE):
            _, kind, ending = verdict.split("\t")
            others[kind, ending] += 1
        else:
            bad.append(f"{printable(path)} {verdict.strip()}")
    if others:
        notices.append(skipped_files(others))
    if bad:
        noun = "photo cannot be used and is" if len(bad) == 1 else "photos cannot be used and are"
        notices.append("\n  ".join([f"{len(bad):,} {noun} left out:", *listed(bad, _LISTED)]))
    return good


def _matching(names: list[str], choice: PhotoChoice, notices: list[str]) -> set[str]:
    """Return the paths that match a pattern, or with a folder or file name that matches one."""
    found: set[str] = set()
    for pattern in choice.ignore:
        match = re.compile(fnmatch.translate(pattern)).match
        own = {name for name in names if match(name) or any(map(match, name.split("/")))}
        if not own and not choice.is_stored:
            notices.append(f"the pattern {printable(pattern)} of data.ignore matches no file")
        found |= own
    return found


def _rows_of_folders(root: Path, good: list[tuple[int, str]], split: str, notices: list[str]) -> list[_Row]:
    """Return the photos in class folders, or in the class folders of splits."""
    parts = [path.split("/") for _, path in good]
    tops = {each[0] for each in parts if len(each) > 1}
    loose_in = {each[0] for each in parts if len(each) == 2}
    has_splits = any(name in tops - loose_in for name in ("train", split))
    splits = {name: canonical for name, canonical in SPLIT_NAMES.items() if name in tops} | {split: split}
    for name in [name for name in splits if name != splits[name] and splits[name] in tops]:
        del splits[name]  # `val` counts, `valid` beside `val` does not.
    rows, loose, outside = [], [], Counter[str]()
    for (number, path), each in zip(good, parts, strict=True):
        if has_splits and len(each) > 1 and each[0] not in splits:
            outside[each[0]] += 1
        elif len(each) < 2 + has_splits:
            loose.append(path)
        else:
            rows.append(_Row(number, path, each[has_splits], splits[each[0]] if has_splits else ""))
    if outside:
        names = ", ".join(printable(name) for name in listed(sorted(outside), _LISTED))
        notices.append(f"{outside.total():,} photos in folders that are no splits are left out: {names}")
    if loose and rows:
        notices.append(f"{len(loose):,} photos in no class folder are left out, such as {printable(loose[0])}")
    return rows


def _without_excluded(rows: list[_Row], choice: PhotoChoice, notices: list[str]) -> list[_Row]:
    if not choice.excluded:
        return rows
    missing = choice.excluded - {row.path for row in rows}
    if missing and not choice.is_stored:
        notices.append(
            f"{len(missing):,} of {len(choice.excluded):,} paths of data.exclude are no photos here, such as "
            f"{printable(min(missing))}"
        )
    return [row for row in rows if row.path not in choice.excluded]


def _mapped(rows: list[_Row], choice: PhotoChoice, notices: list[str]) -> list[_Row]:
    new = choice.class_map
    if (missing := sorted(new.keys() - {row.label for row in rows})) and not choice.is_stored:
        names = ", ".join(printable(name) for name in listed(missing, _LISTED))
        notices.append(f"data.class_map names {len(missing)} classes without photos: {names}")
    return [row._replace(label=label) for row in rows if (label := new.get(row.label, row.label))]


def _fingerprint(classes: Sequence[str], rows: Sequence[_Row], digests: Any) -> str:
    """Return the SHA-256 of class names, and of class, path and content of each photo."""
    digest = hashlib.sha256("\0".join(classes).encode("utf-8", "surrogateescape"))
    for row, content in zip(rows, digests, strict=True):
        digest.update(f"\0{row.label}\0{row.path}\0".encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()


def _no_photos(
    root: Path, split: str, rows: Sequence[_Row], good: Sequence[str], index: Index, choice: PhotoChoice
) -> DataError:
    """Return the error for a split without photos, with what is there."""
    found = Counter(row.split for row in rows)
    if not rows:
        there = f"{len(index):,} files, and {len(good):,} photos that can be used and are not ignored"
        return DataError(
            f"{root} has no photos in class folders (found {there}); give a folder with a folder for each class, or a "
            "list of photos"
        )
    there = ", ".join(f"{count:,} {name}" for name, count in sorted(found.items()))
    advice = f"give the photos of {split}"
    if SPLIT_NAMES.get(split) == "val":
        few = choice.val_share is not None
        advice = "add photos" if few else "add val/, or set data.split='{val: 0.2}' to measure a fifth of the photos"
    return DataError(f"{root} has no photos of the split {split!r} (found {there}); {advice}")
