"""Checks of the data: classes, ImageNet's totals, images by sample, and training images in validation."""

import hashlib
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np

from seresnext.check.findings import Finding, Verdict, judge
from seresnext.data.decode.pillow import Decoding, decode, is_transparent, open_image
from seresnext.data.readers import Reader
from seresnext.data.readers.imagenet import OFFICIAL_COUNTS
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.survey import is_turned
from seresnext.distributed import World
from seresnext.errors import DataError, printable
from seresnext.randomness import permutation_at
from seresnext.recipe.schema import Recipe

# Without `--full`: images of a split that are decoded, seconds for this, and limits for the comparison of files.
_SAMPLE, _SAMPLE_SECONDS = {"training": 3000, "validation": 1000}, 12.0
_COMPARED_BYTES, _COMPARED_SECONDS = 5e9, 30.0
_CHUNK = 10_000  # Images between two exchanges of the ranks, which wait for each other at most 10 minutes.
_HUGE_PIXELS = 10_000_000  # The decode of such a JPEG takes a tenth of a second.
_FEW = 0.01  # A share of odd images that is normal: ImageNet has CMYK, turned, tiny and huge images, too.
_LARGEST_RATIO, _LARGEST_SHARE = 10, 0.8
_FIXES = {
    "CMYK": "convert the CMYK images to RGB: Pillow ignores their colour profile",
    "turned": "set data.exif_rotation=true: the images that EXIF turns are used as stored",
    "transparent": "set data.background=[255, 255, 255]: hidden pixels become their stored colour, often black",
    "tiny": "remove the tiny images or lower data.image_size: they are enlarged more than 4 times",
    "huge": "shrink the images above 10 million pixels: the loader decodes every pixel",
}
T = TypeVar("T")
Look = tuple[int, list[tuple[str, str]]]
"""The bytes of an image, and its kinds, each with the image's name. The kind `bad` has the error instead."""


def check_data(recipe: Recipe, readers: Mapping[str, Reader], world: World, *, full: bool) -> Iterator[Finding]:
    """Yield the findings about the splits that could be opened. All ranks share the work and yield the same.

    `full`: decode all images, and compare all files.
    """
    for name, reader in readers.items():
        yield judge_counts(name, reader.classes, np.bincount(reader.labels, minlength=len(reader.classes)))
    yield from judge_totals(readers)
    num_bytes = 0.0
    for name, reader in readers.items():
        if not reader.has_local_files and not full:
            num_bytes = math.inf
            yield judge("data", f"{name} images", "not checked: shards of a server; --full downloads them")
            continue
        looks = look_at(name, reader, recipe, world, full)
        num_bytes += sum(size for size, _ in looks) / max(len(looks), 1) * len(reader)
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
    fix = source = ""
    if counts[largest] > _LARGEST_RATIO * counts[smallest] or share > _LARGEST_SHARE:
        fix = f"add images of small classes ({printable(classes[smallest], 40)}), or set data.sampling=balanced: "
        fix += f"{label} alone gives {share:.1%}"
        source = "Buda et al. 2018, arXiv:1710.05381"
    values = {"smallest": int(counts[smallest]), "largest": int(counts[largest]), "largest_share": share}
    return judge("data", f"{name} classes", measured, fix, source=source, **values)


def judge_totals(readers: Mapping[str, Reader]) -> Iterator[Finding]:
    """Yield the finding about ImageNet's published numbers of images, if the classes are ImageNet's."""
    classes = {row.wordnet_id for row in imagenet_classes()}
    expected = {"training": OFFICIAL_COUNTS["train"], "validation": OFFICIAL_COUNTS["val"]}
    if readers and all(set(reader.classes) == classes for reader in readers.values()):
        counts = ", ".join(f"{len(reader):,} of {expected[name]:,} {name} images" for name, reader in readers.items())
        differs = any(len(reader) != expected[name] for name, reader in readers.items())
        fix = "unpack or download again (seresnext prepare imagenet checks the archives)" * differs
        yield judge("data", "ImageNet's totals", counts, fix, source="ILSVRC 2012, image-net.org")


def look_at(name: str, reader: Reader, recipe: Recipe, world: World, full: bool) -> list[Look]:
    """Decode a seeded sample of a split, or all images if `full`."""
    indices = np.arange(len(reader)) if full else permutation_at(0, "check", name, count=len(reader))[: _SAMPLE[name]]
    deadline = math.inf if full else time.monotonic() + _SAMPLE_SECONDS
    decoding = Decoding.of(recipe.data)

    def look(index: int) -> Look | None:
        if time.monotonic() > deadline:
            return None
        try:
            data = reader.read(index)
            decode(data, reader.name(index), decoding)
        except DataError as error:
            return 0, [("bad", printable(error, 300))]
        is_odd = {}
        with suppress(Exception):  # Odd metadata may cause any exception, and the pixels are good.
            image = open_image(data)
            is_odd["CMYK"] = image.mode == "CMYK"
            is_odd["turned"] = not decoding.exif_rotation and is_turned(image, data)
            is_odd["transparent"] = decoding.background is None and is_transparent(image)
            is_odd["tiny"] = min(image.size) < recipe.data.image_size / 4
            is_odd["huge"] = image.width * image.height > _HUGE_PIXELS
        return len(data), [(kind, printable(reader.name(index))) for kind, holds in is_odd.items() if holds]

    return [found for found in _on_all_ranks(look, indices, world) if found]


def judge_images(name: str, looks: Sequence[Look], total: int, if_bad: Verdict) -> Iterator[Finding]:
    """Yield the findings about the images that were looked at, of `total`. `if_bad`: the verdict for a bad image."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for kind, example in (pair for _, found in looks for pair in found):
        kinds[kind].append(example)
    seen = f"{len(looks):,} of {total:,} images looked at"
    values: dict[str, Any] = {"seen": len(looks), **{kind: len(examples) for kind, examples in kinds.items()}}
    if bad := kinds.pop("bad", []):
        measured = "\n".join([f"{seen}, {len(bad):,} cannot be used:", *bad[:3]])
        fix = "repair or remove these files" + ", or set data.on_error=substitute" * (name == "training")
        yield judge("data", f"{name} files", measured, fix, verdict=if_bad, **values)
    found = ", ".join(f"{len(examples):,} {kind} ({examples[0]})" for kind, examples in kinds.items())
    fix = "; ".join(_FIXES[kind] for kind, examples in kinds.items() if len(examples) > _FEW * len(looks))
    measured = f"{seen}: {found or 'none CMYK, turned, transparent, tiny or huge'}"
    yield judge("data", f"{name} images", measured, fix, **values)


def compare_splits(train: Reader, val: Reader, num_bytes: float, world: World, full: bool) -> Finding:
    """Return the finding about files of training that are in validation, too, by digest. `num_bytes`: of both."""
    judge_shared = partial(judge, "data", "train in val")
    if num_bytes > _COMPARED_BYTES and not full:
        size = f"{num_bytes / 1e9:,.0f} GB" if num_bytes < math.inf else "shards of a server"
        return judge_shared(f"not checked: {size}, more than {_COMPARED_BYTES / 1e9:.0f} GB; --full compares all files")
    deadline = math.inf if full else time.monotonic() + _COMPARED_SECONDS

    def digest(reader: Reader, index: int) -> tuple[bytes, int] | None:
        if time.monotonic() > deadline:
            return None
        try:
            return hashlib.blake2b(reader.read(index), digest_size=16).digest(), index
        except DataError:
            return b"", index  # `look_at` reports the file.

    seen = [list(_on_all_ranks(partial(digest, reader), range(len(reader)), world)) for reader in (val, train)]
    if any(found is None for part in seen for found in part):
        return judge_shared(f"not checked: the files take more than {_COMPARED_SECONDS:.0f} s to read; --full waits")
    known = {key: index for key, index in filter(None, seen[0]) if key}
    both = [(index, known[key]) for key, index in filter(None, seen[1]) if key in known]
    if not both:
        return judge_shared("no file of training is in validation, too (digests)", shared=0)
    share = len({other for _, other in both}) / len(val)
    pair = f"{printable(train.name(both[0][0]))} = {printable(val.name(both[0][1]))}"
    return judge_shared(
        f"{len(both):,} training images are in validation, {share:.1%} of validation, such as {pair}",
        "remove these images from one of the splits: the accuracy is too high",
        verdict="failure" if share > _FEW else "warning",
        shared=len(both),
    )


def _on_all_ranks(work: Callable[[int], T], indices: Sequence[int] | np.ndarray, world: World) -> Iterator[T]:
    """Yield the results of all ranks, chunk by chunk. Each rank does a share of the work, in threads."""
    chunks = max(1, math.ceil(len(indices) / world.size / _CHUNK))
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(8) as pool:
        for part in np.array_split(np.asarray(indices)[world.rank :: world.size], chunks):
            for results in world.gather(list(pool.map(work, part.tolist()))):
                yield from results
