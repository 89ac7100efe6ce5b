"""Checks of the data: classes, counts, ImageNet's totals, images by sample, and training images in validation."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from seresnext.check.findings import Finding, judge
from seresnext.data.decode.pillow import decode, open_image
from seresnext.data.readers import Reader
from seresnext.data.readers.imagenet import OFFICIAL_COUNTS
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.survey import is_transparent, is_turned
from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.printable import printable
from seresnext.randomness import permutation_at
from seresnext.recipe.schema import Recipe

# Without `--full`: images of a split that are decoded, seconds for this, and limits for the comparison of files.
_SAMPLE, _SAMPLE_SECONDS = {"training": 3000, "validation": 1000}, 12.0
_COMPARED_BYTES, _COMPARED_SECONDS = 5e9, 30.0
_CHUNK = 10_000  # Images between two exchanges of the ranks, which wait for each other at most 10 minutes.
_THREADS, _EXAMPLES = 8, 3
_HUGE_PIXELS = 10_000_000  # The decode of such a JPEG takes a tenth of a second.
_FEW = 0.01  # A share of odd images that is normal: ImageNet has CMYK, turned, tiny and huge images, too.
_LARGEST_RATIO, _LARGEST_SHARE = 10, 0.8
_ODD = {
    "CMYK": "convert the CMYK images to RGB: Pillow ignores their colour profile",
    "turned": "turn the pixels (mogrify -auto-orient): EXIF rotation is not applied",
    "transparent": "flatten the transparent images: hidden pixels become their stored colour, often black",
    "tiny": "remove the tiny images or lower data.image_size: they are enlarged more than 4 times",
    "huge": "shrink the images above 10 million pixels: the loader decodes every pixel",
}
T = TypeVar("T")


class Look(NamedTuple):
    """The bytes of an image and its odd kinds, each with the name of the image. A bad image has the error instead."""

    bytes: int
    kinds: list[tuple[str, str]]


def check_data(recipe: Recipe, readers: Mapping[str, Reader], world: World, *, full: bool) -> Iterator[Finding]:
    """Yield the findings about the splits that could be opened. All ranks share the work and yield the same.

    `full`: decode all images, and compare all files.
    """
    num_bytes = 0.0
    for name, reader in readers.items():
        yield judge_counts(name, reader.classes, np.bincount(reader.labels, minlength=len(reader.classes)))
    if official := judge_totals(readers):
        yield official
    for name, reader in readers.items():
        if not reader.has_local_files and not full:
            num_bytes = math.inf
            yield Finding("data", f"{name} images", "ok", "not checked: shards of a server; --full downloads them")
            continue
        looks = look_at(name, reader, recipe, world, full)
        num_bytes += sum(look.bytes for look in looks) / max(len(looks), 1) * len(reader)
        replaces = recipe.data.on_error == "substitute" and name == "training"
        yield from judge_images(name, looks, len(reader), "warning" if replaces else "failure")
    if len(readers) == 2:
        yield compare_splits(readers["training"], readers["validation"], num_bytes, world, full)


def judge_counts(name: str, classes: Sequence[str], counts: np.ndarray) -> Finding:
    """Return the finding about the images of each class."""
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    label, share = printable(classes[largest], 40), float(counts[largest] / counts.sum())
    measured = (
        f"{counts.sum():,} images of {len(classes):,} classes: {counts[smallest]:,} to {counts[largest]:,} a class, "
        f"median {np.median(counts):,.0f}; the largest, {label}, has {share:.1%}"
    )
    is_uneven = bool(counts[largest] > _LARGEST_RATIO * counts[smallest]) or share > _LARGEST_SHARE
    fix = f"add images of {printable(classes[smallest], 40)} and other small classes: {label} alone gives {share:.1%}"
    source = "Buda et al. 2018, arXiv:1710.05381" if is_uneven else ""
    values = {"smallest": int(counts[smallest]), "largest": int(counts[largest]), "largest_share": share}
    return judge("data", f"{name} classes", measured, is_uneven, fix, source=source, values=values)


def judge_totals(readers: Mapping[str, Reader]) -> Finding | None:
    """Return the finding about ImageNet's published numbers of images, or None for other classes."""
    wordnet_ids = {row.wordnet_id for row in imagenet_classes()}
    if not readers or any(set(reader.classes) != wordnet_ids for reader in readers.values()):
        return None
    expected = {"training": OFFICIAL_COUNTS["train"], "validation": OFFICIAL_COUNTS["val"]}
    measured = ", ".join(f"{len(reader):,} of {expected[name]:,} {name} images" for name, reader in readers.items())
    differs = any(len(reader) != expected[name] for name, reader in readers.items())
    fix = "unpack or download again what is missing (seresnext prepare imagenet checks the archives)"
    return judge("data", "ImageNet's totals", measured, differs, fix, source="ILSVRC 2012, image-net.org")


def look_at(name: str, reader: Reader, recipe: Recipe, world: World, full: bool) -> list[Look]:
    """Decode a seeded sample of a split, or all images if `full`."""
    indices = np.arange(len(reader)) if full else permutation_at(0, "check", name, count=len(reader))[: _SAMPLE[name]]
    deadline = math.inf if full else time.monotonic() + _SAMPLE_SECONDS
    return [look for look in _shared(partial(_look, reader, recipe, deadline), indices, world) if look]


def _look(reader: Reader, recipe: Recipe, deadline: float, index: int) -> Look | None:
    """Return a look at an image; None after the deadline."""
    if time.monotonic() > deadline:
        return None
    name = reader.name(index)
    try:
        data = reader.read(index)
        decode(data, name, recipe.data.max_pixels)
    except DataError as error:
        return Look(0, [("bad", printable(error, 300))])
    image = open_image(data)
    is_odd = {
        "CMYK": image.mode == "CMYK",
        "turned": is_turned(image, data),
        "transparent": is_transparent(image),
        "tiny": min(image.size) < recipe.data.image_size / 4,
        "huge": image.width * image.height > _HUGE_PIXELS,
    }
    return Look(len(data), [(kind, printable(name)) for kind, holds in is_odd.items() if holds])


def judge_images(
    name: str, looks: Sequence[Look], total: int, bad_verdict: Literal["warning", "failure"]
) -> Iterator[Finding]:
    """Yield the findings about the images that were looked at, of `total`."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for look in looks:
        for kind, example in look.kinds:
            kinds[kind].append(example)
    seen = f"all {total:,}" if len(looks) == total else f"{len(looks):,} of {total:,}"
    values = {"seen": len(looks), **{kind: len(examples) for kind, examples in kinds.items()}}
    if bad := kinds.pop("bad", []):
        measured = "\n".join([f"{len(bad):,} of {seen} seen cannot be used:", *bad[:_EXAMPLES]])
        fix = "repair or remove these files" + ", or set data.on_error=substitute" * (name == "training")
        yield Finding("data", f"{name} files", bad_verdict, measured, fix, values=values)
    found = ", ".join(f"{len(examples):,} {kind} ({examples[0]})" for kind, examples in kinds.items())
    fixes = [_ODD[kind] for kind, examples in kinds.items() if len(examples) > _FEW * len(looks)]
    measured = f"{seen} seen: {found or 'none is CMYK, turned, transparent, tiny or huge'}"
    yield judge("data", f"{name} images", measured, bool(fixes), "; ".join(fixes), values=values)


def compare_splits(train: Reader, val: Reader, num_bytes: float, world: World, full: bool) -> Finding:
    """Return the finding about files of training that are in validation, too, by digest. `num_bytes`: of both."""
    name = "train in val"
    if num_bytes > _COMPARED_BYTES and not full:
        size = f"{num_bytes / 1e9:,.0f} GB are more than {_COMPARED_BYTES / 1e9:.0f}" * (num_bytes < math.inf)
        return Finding("data", name, "ok", f"not checked: {size or 'shards of a server'}; --full compares all files")
    deadline = math.inf if full else time.monotonic() + _COMPARED_SECONDS
    seen_in_val, seen_in_train = (
        list(_shared(partial(_digest, reader, deadline), range(len(reader)), world)) for reader in (val, train)
    )
    if None in seen_in_val or None in seen_in_train:
        measured = f"not checked: {_COMPARED_SECONDS:.0f} s do not suffice for {num_bytes / 1e9:.1f} GB; --full does"
        return Finding("data", name, "ok", measured)
    known = {digest: index for index, digest in filter(None, seen_in_val) if digest}
    both = [(index, known[digest]) for index, digest in filter(None, seen_in_train) if digest in known]
    if not both:
        return Finding("data", name, "ok", "no training image is a file of validation, too (digests)")
    share = len({other for _, other in both}) / len(val)
    pair = f"{printable(train.name(both[0][0]))} = {printable(val.name(both[0][1]))}"
    measured = f"{len(both):,} training images are in validation, {share:.1%} of validation, such as {pair}"
    fix = "remove these images from one of the splits: the accuracy is too high"
    verdict = "failure" if share > _FEW else "warning"
    return Finding("data", name, verdict, measured, fix, values={"shared": len(both), "share": share})


def _digest(reader: Reader, deadline: float, index: int) -> tuple[int, bytes] | None:
    """Return an index and the digest of the file; no digest for an unreadable file; None after the deadline."""
    if time.monotonic() > deadline:
        return None
    try:
        return index, hashlib.blake2b(reader.read(index), digest_size=16).digest()
    except DataError:
        return index, b""


def _shared(work: Callable[[int], T], indices: Sequence[int] | np.ndarray, world: World) -> Iterator[T]:
    """Yield the results of all ranks, chunk by chunk. Each rank does a share of the work, in threads."""
    own = np.asarray(indices)[world.rank :: world.size]
    chunks = max(1, math.ceil(len(indices) / world.size / _CHUNK))
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(_THREADS) as pool:
        for part in np.array_split(own, chunks):
            for results in world.gather(list(pool.map(work, part.tolist()))):
                yield from results
