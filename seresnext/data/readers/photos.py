"""Photographs as people have them: class folders without splits, split folders, nested folders, and lists."""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from seresnext.data.readers import Reader
from seresnext.data.readers.folder import counted
from seresnext.data.readers.paths import PathReader
from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.data.readers.photo_files import PhotoFile, read_photo_files
from seresnext.errors import DataError, as_utf8, listed, printable
from seresnext.files import check_data_folder, is_list, read_text

ALL = "all"  # the name of the split with all photos


@dataclass(slots=True)
class _Row:
    """A photo: the path, the digest of the content, the class and the split."""

    path: str
    digest: str
    label: str
    split: str


class PhotoReader(PathReader):
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
        base = root.parent if listing else root
        files = read_photo_files(root, base, listing, cache, choice.max_pixels)
        good, self.left_out = _good_photos(files, choice, notices)
        listing = listing or _in_folders(good, wanted, notices)
        new = choice.class_map
        _report_unused("data.class_map", new.keys() - {label for label, _ in listing.values()}, choice, notices)
        rows = [
            _Row(path, good[path], new.get(label, label), split)
            for path, (label, split) in listing.items()
            if path in good and new.get(label, label)
        ]
        self.is_divided = choice.val_share is not None and all(row.split != "val" for row in rows)
        self.choice = divide(rows, choice) if self.is_divided else choice
        chosen = sorted((row for row in rows if wanted in (row.split, ALL)), key=lambda row: (row.label, row.path))
        if not chosen:
            raise _no_photos(root, split, rows, choice)
        super().__init__((row.path for row in chosen), f"{base}/", "restore the file, or start again")
        of = {name: {row.label for row in rows if row.split == name} for name in ("train", "val")}
        if of["val"] and (without := sorted(of["train"] - of["val"])):
            names = ", ".join(printable(name) for name in listed(without))
            notices.append(f"classes without validation images: {names}")
        self.classes = tuple(sorted(of["train"] | {row.label for row in chosen}))
        places = {label: place for place, label in enumerate(self.classes)}
        self.labels = np.array([places[row.label] for row in chosen], np.min_scalar_type(len(places)))
        facts = json.dumps([self.classes, [(row.label, row.path, row.digest) for row in chosen]])
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        self.notices = tuple(f"{root}: {notice}" for notice in notices)


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
    kept: dict[str, str] = {**choice.kept}
    split = {digest: kept.get(digest, "val" if hashes[digest] < choice.val_share else "train") for digest in hashes}
    members: dict[str, set[str]] = {}
    for row in rows:
        members.setdefault(row.label, set()).add(row.digest)
    for missing, pick, least in (("val", min, 2), ("train", max, 1)):
        for _, digests in sorted(members.items()):
            if len(digests) >= least and all(split[digest] != missing for digest in digests):
                chosen = pick(digests, key=hashes.__getitem__)
                split[chosen] = kept[chosen] = missing
    for row in rows:
        row.split = split[row.digest]
    return choice.model_copy(update={"kept": kept})


def fraction_of(digest: str, seed: int) -> float:
    """Return the hash of a photo, from 0 to 1: BLAKE2b of the digest in 8 bytes, with the seed as the key."""
    hashed = hashlib.blake2b(bytes.fromhex(digest), digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(hashed, "big") / 2**64


def _good_photos(
    files: Mapping[str, PhotoFile], choice: PhotoChoice, notices: list[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the digests of the photos that can be decoded and are not left out by choice, and the photos that cannot.

    Report the other files.
    """
    names = {as_utf8(path): path for path in files}
    left_out = {names.get(name) for name in choice.excluded}
    _report_unused("data.exclude", set(choice.excluded) - names.keys(), choice, notices)
    for pattern in choice.ignore:
        found = {path for path in files if any(fnmatchcase(part, pattern) for part in (path, *path.split("/")))}
        _report_unused("data.ignore", () if found else [pattern], choice, notices)
        left_out |= found
    files = {path: file for path, file in files.items() if path not in left_out}
    if others := Counter((file.kind, file.ending) for file in files.values() if file.kind):
        notices.append(f"skipped files: {counted(others)}")
    if bad := [f"{printable(path)} {file.problem}" for path, file in files.items() if file.problem]:
        notices.append("\n  ".join([f"unreadable photos are left out ({len(bad):,}):", *listed(bad)]))
    return {path: file.digest for path, file in files.items() if file.digest}, tuple(bad)


def _in_folders(paths: Iterable[str], wanted: str, notices: list[str]) -> dict[str, tuple[str, str]]:
    """Return class and split of the photos in class folders, or in the class folders of splits."""
    parts = [path.split("/") for path in paths]
    folders = {each[0] for each in parts if len(each) > 1}
    splits = {wanted: wanted} if wanted in folders else {}
    for known, split in SPLIT_NAMES.items():  # `valid` does not count if there is `val`.
        same = [name for name in sorted(folders) if name.lower() == known and split not in splits.values()]
        splits |= dict.fromkeys(same[:1], split)
    has_splits = not splits.keys().isdisjoint(folders - {each[0] for each in parts if len(each) == 2})
    found, left_out = {}, {}
    for path, each in zip(paths, parts, strict=True):
        if len(each) < 2 + has_splits:
            left_out.setdefault("outside of class folders", []).append(path)
        elif has_splits and each[0] not in splits:
            left_out.setdefault("outside of splits", []).append(path)
        else:
            found[path] = each[has_splits], splits[each[0]] if has_splits else "train"
    for place, others in left_out.items():
        notices.append(f"photos {place} are left out ({len(others):,}), such as {printable(others[0])}")
    return found


def _report_unused(key: str, names: Collection[str], choice: PhotoChoice, notices: list[str]) -> None:
    """Report the entries of a key that concern no photo. The choice in a checkpoint may be for other data."""
    if names and not choice.is_stored:
        notices.append(f"entries of {key} match nothing ({len(names):,}), such as {printable(min(names))}")


def _no_photos(root: Path, split: str, rows: Sequence[_Row], choice: PhotoChoice) -> DataError:
    """Return the error for a split without photos, with the splits that are there."""
    if not rows:
        return DataError(f"{root} has no photos in class folders; give a folder with a folder for each class or a list")
    there = ", ".join(f"{count:,} {name}" for name, count in sorted(Counter(row.split for row in rows).items()))
    advice = "name another split"
    if SPLIT_NAMES.get(split) == "val":
        advice = "add photos" if choice.val_share else "add photos of val, or set data.split='{val: 0.2}'"
    return DataError(f"{root} has no photos of the split {split} (found {there}); {advice}")


SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The split that a name in a list, or a folder, stands for."""


def read_photo_list(file: Path) -> dict[str, tuple[str, str]]:
    """Return class and split of the photos of a list by path, sorted. The split is train if the list gives none.

    Raises one DataError for all mistakes, with the numbers of lines.
    """
    lines = _json_lines if file.suffix.lower() == ".jsonl" else _csv_lines
    photos: dict[str, tuple[str, str]] = {}
    numbers: dict[str, int] = {}
    mistakes = []
    for number, values in lines(read_text(file), file):
        if isinstance(values, str):
            mistakes.append(f"line {number}: {values}")
            continue
        path, label, split = (values.get(key, "").strip() for key in ("path", "label", "split"))
        known = SPLIT_NAMES.get(split.lower() or "train")
        problems = [f"{key} is missing" for key, value in (("path", path), ("label", label)) if not value]
        if not known:
            problems.append(f"split is {printable(split)}, not {', '.join(SPLIT_NAMES)}")
        if path and not os.path.isfile(file.parent / path):  # noqa: PTH113 (raises nothing for odd names)
            problems.append(f"there is no file {printable(path)}")
        if path and numbers.setdefault(path, number) != number:
            problems.append(f"{printable(path)} is in line {numbers[path]}, too")
        mistakes += [f"line {number}: {problem}" for problem in problems]
        photos[path] = label, known or ""
    if mistakes:
        heading = f"{file} cannot be used; correct {len(mistakes):,} mistake{'s' * (len(mistakes) > 1)}:"
        raise DataError("\n  ".join([heading, *listed(mistakes)]))
    if not photos:
        raise DataError(f"{file} lists no photos; write a line with path and label for each photo")
    return dict(sorted(photos.items()))


def _csv_lines(text: str, file: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the number and the values of each line, or a mistake. The first line names the columns."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=delimiter, strict=True)
    try:
        rows.fieldnames = names = [name.strip().lower() for name in rows.fieldnames or ()]
        if not {"path", "label"} <= set(names):
            raise DataError(
                f"{file} has the columns {printable(', '.join(names)) or '-'} in the first line; name the columns "
                "path, label and, if the list gives the splits, split"
            )
        for row in rows:
            yield rows.line_num, f"more than {len(names)} values" if None in row else row
    except csv.Error as error:
        yield rows.reader.line_num, f"this is not CSV ({error})"


def _json_lines(text: str, file: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, {key: str(value) for key, value in json.loads(line).items() if value is not None}
        except AttributeError:
            yield number, "this is no JSON object with path and label"
        except (ValueError, RecursionError) as error:
            yield number, f"this is not JSON ({error})"
