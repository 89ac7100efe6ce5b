"""Plain tar shards of an image folder or of ImageNet's archives, shuffled, for fast disks and for servers.

Without options, the bytes of the images do not change. `short_side` resizes larger images and encodes them as JPEG with
4:2:0 colour, the fastest to decode. `quality` alone encodes every image again at the same size. Pixels are not turned:
the EXIF orientation of an encoded image stays. The same images and options give the same bytes with any number of
workers. After a stop, the same command keeps every finished shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import signal
import tarfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from seresnext.data.decode.kinds import ENDINGS, kind_of, not_an_image
from seresnext.data.decode.pillow import Decoding, decode_as_stored, exif_of, is_gray
from seresnext.data.formats import detect_format, open_reader
from seresnext.data.readers import Reader
from seresnext.data.shards.format import (
    INDEX,
    LARGEST_SHARD,
    MANIFEST,
    MOST_CLASSES,
    MOST_SHARDS,
    Manifest,
    Shard,
    index_bytes,
    list_shard,
)
from seresnext.errors import DataError, Failure, UsageError
from seresnext.files import read_lines
from seresnext.printable import as_utf8, listed, printable
from seresnext.process.fork import FORK
from seresnext.process.signals import die_with_parent
from seresnext.progress import progress, warn
from seresnext.randomness import permutation_at
from seresnext.run.folder import lies_in

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Bytes that a tar file needs for an image, in addition to the image: two headers, a label, and padding.
_TAR_BYTES = 512 + 256 + 512 + 512
# The mean size of so many images gives the number of images of a shard.
_SAMPLE = 64
_WORK = ".progress"  # the folder of unfinished shards, and of a note for each finished shard
_LISTED = 10  # names in a message


@dataclass(frozen=True)
class Job:
    """The shards of one split: the folder, the order of the images, and the options that the bytes depend on.

    `made` are the shards of earlier starts with the same options, by name.
    """

    reader: Reader
    folder: Path
    order: np.ndarray
    options: dict[str, Any]
    decoding: Decoding
    made: dict[str, Shard] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        return -(-len(self.order) // self.options["images_per_shard"])

    @property
    def digest(self) -> str:
        """The SHA-256 of the options."""
        return hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()

    def name(self, shard: int) -> str:
        return f"{self.folder.name}-{shard:05}.tar"

    def images(self, shard: int) -> range:
        """The positions in the order of the images of a shard."""
        size = self.options["images_per_shard"]
        return range(shard * size, min((shard + 1) * size, len(self.order)))


def encode(data: bytes, name: str, options: dict[str, Any], decoding: Decoding) -> tuple[bytes, str]:
    """Return the bytes of an image for a shard, and the ending of its name. Raises DataError naming the image."""
    kind = kind_of(data)
    if kind is None:
        raise not_an_image(data, name)
    ending = ENDINGS[kind][0]
    short_side, quality = options["short_side"], options["quality"]
    if quality is None:
        return data, ending
    image, orientation = decode_as_stored(data, name, decoding)
    if short_side is not None:
        width, height = image.size
        shorter = min(width, height)
        if shorter > short_side:
            # The same rounding as in evaluation: 256 here and 224 / 0.875 there give the same size.
            size = (int(short_side * width / shorter), int(short_side * height / shorter))
            image = image.resize(size, _FILTERS[options["interpolation"]])
        elif kind == "JPEG":
            return data, ending
    if is_gray(data) and decoding.background is None:
        image = image.convert("L")  # Exact, and decoding costs half.
    buffer = io.BytesIO()
    # The orientation stays, so that data.exif_rotation means the same for shards.
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", exif=exif_of(orientation))
    return buffer.getvalue(), ".jpg"


def images_per_shard(reader: Reader, order: np.ndarray, options: dict[str, Any], decoding: Decoding, size: int) -> int:
    """Return the number of images that make a shard of about `size` bytes, from the mean size of a sample."""
    sample = order[:_SAMPLE].tolist()
    sizes = [len(encode(reader.read(i), reader.name(i), options, decoding)[0]) for i in sample]
    return max(1, round(size / (sum(sizes) / len(sizes) + _TAR_BYTES)))


def write_shard(job: Job, number: int) -> tuple[Shard, np.ndarray]:
    """Write a shard and the note of it, unless the shard is finished and intact. Return shard and index entries."""
    name = job.name(number)
    target, part = job.folder / name, job.folder / _WORK / f"{name}.part"
    if name in job.made:
        with suppress(DataError):  # The shard is missing or damaged.
            listing = list_shard(target, len(job.reader.classes))
            if listing.sha256 == job.made[name].sha256:
                return job.made[name], listing.entries
    with part.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for position in job.images(number):
                image = int(job.order[position])
                source = job.reader.name(image)
                data, ending = encode(job.reader.read(image), source, job.options, job.decoding)
                key = f"{position:09}-{re.sub('[^A-Za-z0-9_-]', '_', Path(source).stem)[:60]}"
                _add(tar, f"{key}{ending}", data)
                _add(tar, f"{key}.cls", b"%d" % job.reader.labels[image])
        file.flush()
        os.fsync(file.fileno())
    # Read the shard back: a shard that the reader would refuse is refused now.
    listing = list_shard(part, len(job.reader.classes))
    assert len(listing.entries) == len(job.images(number))
    shard = Shard(name, part.stat().st_size, len(listing.entries), listing.sha256)
    # The note comes first. After a stop between the two, the note describes a shard that does not exist yet.
    _write(job.folder / _WORK / f"{name}.json", json.dumps({"made_by": job.digest, **asdict(shard)}).encode())
    part.replace(target)
    return shard, listing.entries


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # Time 0, owner 0: the same images give the same bytes.
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


_job: Job


def _begin(job: Job) -> None:
    """Begin a worker. The worker ignores Ctrl-C, since the parent ends the workers, and ends with the parent."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)


def _work(number: int) -> tuple[Shard, np.ndarray]:
    return write_shard(_job, number)


def write_shards(job: Job, workers: int) -> list[tuple[Shard, np.ndarray]]:
    """Write all shards of a split with several processes. Return the shards and their index entries."""
    pool = ProcessPoolExecutor(min(workers, job.num_shards), mp_context=FORK, initializer=_begin, initargs=(job,))
    try:
        numbers = {pool.submit(_work, number): number for number in range(job.num_shards)}
        with progress(str(job.folder), len(job.order), " images") as advance:
            for future in as_completed(numbers):
                future.result()
                advance(len(job.images(numbers[future])))
        return [future.result() for future in numbers]
    except BrokenProcessPool:
        raise Failure(
            "a worker process died, perhaps because memory ran out; give fewer --workers. Finished shards are kept: "
            "the same command continues"
        ) from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()


def write_split(job: Job, workers: int) -> Manifest:
    """Write the shards of a split and their index. Raises DataError if the folder has other shards."""
    work = job.folder / _WORK
    made = _made_before(job)
    work.mkdir(parents=True, exist_ok=True)
    with _lock(job.folder):
        names = {job.name(number) for number in range(job.num_shards)}
        for path in (*work.glob("*.part"), *work.glob("*.json")):
            if path.stem not in names:
                if path.suffix == ".json":  # The index would not have this shard of other options.
                    (job.folder / path.stem).unlink(missing_ok=True)
                path.unlink()
        shards, listings = zip(*write_shards(replace(job, made=made), workers), strict=True)
        manifest = write_index(job.folder, job.reader.classes, shards, listings, job.options)
        for file in work.iterdir():
            file.unlink()
    work.rmdir()
    return manifest


def _made_before(job: Job) -> dict[str, Shard]:
    """Return the shards of earlier starts with the same options, finished or not.

    Raises DataError if the folder has finished shards of other images or options, or other tar files.
    """
    path, names, made = job.folder / MANIFEST, set[str](), {}
    for note in (job.folder / _WORK).glob("*.json"):
        names.add(note.stem)
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # A damaged note.
            fields = json.loads(note.read_bytes())
            if fields.pop("made_by") == job.digest:
                made[note.stem] = Shard(**fields)
    if path.exists():
        found = Manifest.from_text(path.read_bytes(), str(path))
        changed = [key for key in job.options if found.options.get(key) != job.options[key]]
        if changed:
            listing = ", ".join(f"{key}: {found.options.get(key)}, now {job.options[key]}" for key in changed)
            raise DataError(f"{job.folder} has other shards ({listing}); give another --output, or remove the folder")
        expected = {job.name(number) for number in range(job.num_shards)}
        made = {shard.name: shard for shard in found.shards if shard.name in expected}
        names = set(made)
    foreign = sorted({path.name for path in job.folder.glob("*.tar")} - names)
    if foreign:
        raise DataError(
            f"{job.folder} has files of other shards: {', '.join(listed(foreign, _LISTED))}; give another --output, or "
            "remove the files"
        )
    return made


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / _WORK / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another `seresnext prepare shards` writes to {folder}; wait until it ends") from None
        yield


def write_index(
    folder: Path, classes: tuple[str, ...], shards: Sequence[Shard], listings: Sequence[np.ndarray], options: dict
) -> Manifest:
    """Write `index.npy`, then `index.json`. The second file makes the folder usable."""
    content = index_bytes(listings)
    manifest = Manifest(classes, tuple(shards), hashlib.sha256(content).hexdigest(), options)
    _write(folder / INDEX, content)
    _write(folder / MANIFEST, manifest.to_text().encode())
    return manifest


def index_existing(folder: Path, classes_file: Path) -> None:
    """Write the index of shards of another tool. Raises DataError naming the member that is not an image."""
    classes = tuple(read_lines(classes_file))
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"{folder} has no .tar files; give the folder of the shards")
    shards, listings = [], []
    with progress(str(folder), sum(path.stat().st_size for path in paths), "B") as advance:
        for path in paths:
            listing = list_shard(path, len(classes))
            if not len(listing.entries):
                raise DataError(f"{path} has no images; remove the file")
            shards.append(Shard(path.name, path.stat().st_size, len(listing.entries), listing.sha256))
            listings.append(listing.entries)
            advance(shards[-1].bytes)
    manifest = write_index(folder, classes, shards, listings, {"source": "existing shards"})
    print(f"{folder}: {manifest.num_images:,} images in {len(manifest.shards)} shards")


def plan(split: str, arguments: Namespace) -> Job:
    """Return the job of a split."""
    root: Path = arguments.data
    reader = open_reader(root, split, detect_format(root, split, arguments.format), arguments.cache)
    for notice in reader.notices:
        warn(notice)
    if others := [name for name in reader.classes if name != as_utf8(name)]:
        raise DataError(f"the name of the class folder {printable(others[0])} is not UTF-8; rename the folder")
    order = permutation_at(arguments.seed, "shards", count=len(reader))
    options: dict[str, Any] = {"source": reader.fingerprint, "images_per_shard": arguments.images_per_shard}
    options |= {"seed": arguments.seed, "short_side": arguments.short_side, "quality": arguments.quality}
    if arguments.quality is not None:
        options |= {"subsampling": "4:2:0", "interpolation": arguments.interpolation if arguments.short_side else None}
        # Another version of the encoder may write other bytes for the same pixels.
        options |= {"encoder": f"Pillow {Image.__version__}, libjpeg {features.version('jpg')}"}
    decoding = Decoding(arguments.max_pixels, exif_rotation=True, background=arguments.background)
    if arguments.background is not None:
        options["background"] = list(arguments.background)
    if arguments.images_per_shard is None:
        size = arguments.shard_size * 1_000_000
        options["images_per_shard"] = images_per_shard(reader, order, options, decoding, size)
    job = Job(reader, arguments.output / split, order, options, decoding)
    if job.num_shards > MOST_SHARDS or len(reader.classes) > MOST_CLASSES:
        raise UsageError(f"{job.num_shards} shards are more than {MOST_SHARDS}; give a larger --shard-size")
    return job


def prepare_shards(arguments: Namespace) -> None:
    """Write the shards of each split. Raises UsageError if the output lies inside the data.

    `arguments` are those of the command, see seresnext/commands/prepare.py.
    """
    if arguments.shard_size * 1_000_000 > LARGEST_SHARD // 2:
        raise UsageError(f"--shard-size {arguments.shard_size}: must be at most 2000")
    if lies_in(arguments.output, arguments.data):
        raise UsageError(f"--output {arguments.output} lies inside the data {arguments.data}; give another folder")
    for split in arguments.split or ("train", "val"):
        job = plan(split, arguments)
        manifest = write_split(job, arguments.workers)
        size = sum(shard.bytes for shard in manifest.shards)
        print(f"{job.folder}: {manifest.num_images:,} images in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB")
