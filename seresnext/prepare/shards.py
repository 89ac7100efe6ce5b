"""Plain tar shards of an image folder or of ImageNet's archives, shuffled, for fast disks and for servers.

Each split gets a folder: `train-00000.tar` and so on in the layout of WebDataset (`KEY.jpg`, `KEY.cls`), and an index
with checksums.

Without options, the bytes of the images do not change. `short_side` resizes an image with a longer shorter side
(Pillow, antialiased) and encodes the image as JPEG with 4:2:0 colour, the fastest to decode; a smaller JPEG does not
change. `quality` alone encodes every image again at the same size.

The same images and options give the same bytes with any number of workers. After a stop, the same command keeps every
shard that is finished and intact. A shard appears complete or not at all.
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from seresnext.data.decode.pillow import JPEG, PNG, decode, is_gray, not_an_image
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
class Options:
    """The options that the bytes of shards depend on."""

    short_side: int | None
    quality: int | None
    interpolation: str
    seed: int

    @property
    def encodes(self) -> bool:
        """Whether images are encoded again."""
        return self.quality is not None


@dataclass(frozen=True)
class Job:
    """The shards of one split: the folder, the order of the images, and the images of each shard."""

    reader: Reader
    folder: Path
    order: np.ndarray
    per_shard: int
    options: Options
    max_pixels: int
    digest: str

    @property
    def num_shards(self) -> int:
        return -(-len(self.order) // self.per_shard)

    def name(self, shard: int) -> str:
        return f"{self.folder.name}-{shard:05}.tar"

    @property
    def names(self) -> set[str]:
        return {self.name(number) for number in range(self.num_shards)}


# ------------------------------------------------------------------------------------------------ images


def encode(data: bytes, name: str, options: Options, max_pixels: int) -> tuple[bytes, str]:
    """Return the bytes of an image for a shard, and the file ending (jpg, png). Raises DataError naming the image."""
    ending = "jpg" if data.startswith(JPEG) else "png" if data.startswith(PNG) else None
    if ending is None:
        raise not_an_image(data, name)
    if options.quality is None:
        return data, ending
    image = decode(data, name, max_pixels)
    if options.short_side is not None:
        width, height = image.size
        shorter = min(width, height)
        if shorter > options.short_side:
            # The same rounding as in evaluation: 256 here and 224 / 0.875 there give the same size.
            size = (int(options.short_side * width / shorter), int(options.short_side * height / shorter))
            image = image.resize(size, _FILTERS[options.interpolation])
        elif ending == "jpg":
            return data, ending
    if is_gray(data):
        image = image.convert("L")  # Exact, and decoding costs half.
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality, subsampling="4:2:0")
    return buffer.getvalue(), "jpg"


def images_per_shard(reader: Reader, order: np.ndarray, options: Options, max_pixels: int, size: int) -> int:
    """Return the number of images that make a shard of about `size` bytes, from the mean size of a sample."""
    sample = order[:_SAMPLE].tolist()
    sizes = [len(encode(reader.read(i), reader.name(i), options, max_pixels)[0]) for i in sample]
    return max(1, round(size / (sum(sizes) / len(sizes) + _TAR_BYTES)))


# ------------------------------------------------------------------------------------------------ shards


def write_shard(job: Job, number: int, advance: Any) -> tuple[Shard, np.ndarray]:
    """Write a shard and the note of it, unless the shard is finished and intact. Return shard and index entries.

    `advance` receives numbers of written images.
    """
    target, note = job.folder / job.name(number), job.folder / _WORK / f"{job.name(number)}.json"
    positions = range(number * job.per_shard, min((number + 1) * job.per_shard, len(job.order)))
    finished = _finished(job, target, note)
    if finished:
        advance(len(positions))
        return finished
    part = job.folder / _WORK / f"{job.name(number)}.part"
    with part.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for position in positions:
                image = int(job.order[position])
                name = job.reader.name(image)
                data, ending = encode(job.reader.read(image), name, job.options, job.max_pixels)
                key = f"{position:09}-{re.sub('[^A-Za-z0-9_-]', '_', Path(name).stem)[:60]}"
                _add(tar, f"{key}.{ending}", data)
                _add(tar, f"{key}.cls", b"%d" % job.reader.labels[image])
                advance(1)
        file.flush()
        os.fsync(file.fileno())
    # Read the shard back: a shard that the reader would refuse is refused now.
    listing = list_shard(part, len(job.reader.classes))
    assert len(listing.entries) == len(positions)
    shard = Shard(target.name, part.stat().st_size, len(positions), listing.sha256)
    # The note comes first. After a stop between the two, the note describes a shard that does not exist yet.
    _write(note, json.dumps({"made_by": job.digest, **asdict(shard)}).encode())
    part.replace(target)
    return shard, listing.entries


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # Time 0, owner 0: the same images give the same bytes.
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _finished(job: Job, target: Path, note: Path) -> tuple[Shard, np.ndarray] | None:
    try:
        fields = json.loads(note.read_bytes())
        made_by = fields.pop("made_by")
        shard = Shard(**fields)
        listing = list_shard(target, len(job.reader.classes))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, DataError):
        return None  # missing or damaged
    return (shard, listing.entries) if listing.sha256 == shard.sha256 and made_by == job.digest else None


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


_job: Job
_counter: Any


def _begin(job: Job, counter: Any) -> None:
    """Begin a worker. The worker ignores Ctrl-C, since the parent ends the workers, and ends with the parent."""
    global _job, _counter
    _job, _counter = job, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)


def _work(number: int) -> tuple[Shard, np.ndarray]:
    def advance(count: int) -> None:
        with _counter.get_lock():
            _counter.value += count

    return write_shard(_job, number, advance)


def write_shards(job: Job, workers: int) -> list[tuple[Shard, np.ndarray]]:
    """Write all shards of a split with several processes. Return the shards and their index entries."""
    counter = FORK.Value("q", 0)
    workers = min(workers, job.num_shards)
    pool = ProcessPoolExecutor(workers, mp_context=FORK, initializer=_begin, initargs=(job, counter))
    try:
        futures = [pool.submit(_work, number) for number in range(job.num_shards)]
        with progress(str(job.folder), len(job.order), " images") as advance:
            done = 0
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=0.2)
                for future in finished:
                    future.result()
                done, before = counter.value, done
                advance(done - before)
        return [future.result() for future in futures]
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


def write_split(job: Job, workers: int, options: dict[str, Any]) -> Manifest:
    """Write the shards of a split and their index. Raises DataError if the folder has other shards."""
    _check_folder(job, options)
    (job.folder / _WORK).mkdir(parents=True, exist_ok=True)
    with _lock(job.folder):
        _restore_notes(job)
        _remove_unfinished(job)
        for part in (job.folder / _WORK).glob("*.part"):
            part.unlink()
        shards, listings = (list(column) for column in zip(*write_shards(job, workers), strict=True))
        manifest = write_index(job.folder, job.reader.classes, shards, listings, options)
        for file in (job.folder / _WORK).iterdir():
            file.unlink()
    (job.folder / _WORK).rmdir()
    return manifest


def _check_folder(job: Job, options: dict[str, Any]) -> None:
    """Raise DataError if the folder has finished shards of other images or options, or other tar files."""
    manifest = job.folder / MANIFEST
    known = {note.stem for note in (job.folder / _WORK).glob("*.json")}
    if manifest.exists():
        found = Manifest.from_text(manifest.read_bytes(), str(manifest))
        known = {shard.name for shard in found.shards} & job.names
        before = found.options
        changed = [key for key in options if before.get(key) != options[key]]
        if changed:
            listing = ", ".join(f"{key}: {before.get(key)}, now {options[key]}" for key in changed)
            raise DataError(f"{job.folder} has other shards ({listing}); give another --output, or remove the folder")
    foreign = sorted({path.name for path in job.folder.glob("*.tar")} - known)
    if foreign:
        more = f" and {len(foreign) - _LISTED} more" if len(foreign) > _LISTED else ""
        raise DataError(
            f"{job.folder} has files of other shards: {', '.join(foreign[:_LISTED])}{more}; give another "
            "--output, or remove the files"
        )


def _remove_unfinished(job: Job) -> None:
    """Remove shards of an unfinished start with other options. The index would not have them."""
    names = job.names
    for note in (job.folder / _WORK).glob("*.json"):
        if note.stem not in names:
            (job.folder / note.stem).unlink(missing_ok=True)
            note.unlink()


def _restore_notes(job: Job) -> None:
    """Write the notes of a finished split from the index. Then only damaged shards are written again."""
    manifest = job.folder / MANIFEST
    if manifest.exists():
        for shard in Manifest.from_text(manifest.read_bytes(), str(manifest)).shards:
            text = json.dumps({"made_by": job.digest, **asdict(shard)})
            _write(job.folder / _WORK / f"{shard.name}.json", text.encode())


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / _WORK / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another `seresnext prepare shards` writes to {folder}; wait until it ends") from None
        yield


def write_index(
    folder: Path, classes: tuple[str, ...], shards: list[Shard], listings: list[np.ndarray], options: dict[str, Any]
) -> Manifest:
    """Write `index.npy`, then `index.json`. The second file makes the folder usable."""
    content = index_bytes(listings)
    manifest = Manifest(classes, tuple(shards), hashlib.sha256(content).hexdigest(), options)
    _write(folder / INDEX, content)
    _write(folder / MANIFEST, manifest.to_text().encode())
    return manifest


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the names in a list of classes, one name a line. Raises DataError naming a line that is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give the list of classes with --classes") from None
    try:
        text = content.decode("utf-8-sig")  # Editors on Windows begin a file with a byte-order mark.
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{number} is not UTF-8 (byte 0x{content[error.start]:02x}); save the list of classes as UTF-8"
        ) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def index_existing(folder: Path, classes_file: Path) -> None:
    """Write the index of shards of another tool. Raises DataError naming the member that is not an image."""
    classes = read_classes(classes_file)
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


# ------------------------------------------------------------------------------------------------ command


def plan(split: str, arguments: Namespace) -> tuple[Job, dict[str, Any]]:
    """Return the job of a split, and the description of the options for the index."""
    root: Path = arguments.data
    reader = open_reader(root, split, detect_format(root, split, arguments.format), arguments.cache)
    for notice in reader.notices:
        warn(notice)
    options = Options(arguments.short_side, arguments.quality, arguments.interpolation, arguments.seed)
    order = permutation_at(options.seed, "shards", count=len(reader))
    per_shard = arguments.images_per_shard or images_per_shard(
        reader, order, options, arguments.max_pixels, arguments.shard_size * 1_000_000
    )
    described: dict[str, Any] = {"source": reader.fingerprint, "images_per_shard": per_shard, "seed": options.seed}
    if options.encodes:
        described |= {"short_side": options.short_side, "quality": options.quality, "subsampling": "4:2:0"}
        described |= {"interpolation": options.interpolation if options.short_side else None}
        # Another version of the encoder may write other bytes for the same pixels.
        described |= {"encoder": f"Pillow {Image.__version__}, libjpeg {features.version('jpg')}"}
    else:
        described |= {"short_side": None, "quality": None}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    job = Job(reader, arguments.output / split, order, per_shard, options, arguments.max_pixels, digest)
    if job.num_shards > MOST_SHARDS or len(reader.classes) > MOST_CLASSES:
        raise UsageError(f"{job.num_shards} shards are more than {MOST_SHARDS}; give a larger --shard-size")
    return job, described


def prepare_shards(arguments: Namespace) -> None:
    """Write the shards of each split. Raises UsageError if the output lies inside the data.

    `arguments` are those of the command, see seresnext/commands/prepare.py.
    """
    if arguments.shard_size * 1_000_000 > LARGEST_SHARD // 2:
        raise UsageError(f"--shard-size {arguments.shard_size}: must be at most 2000")
    if lies_in(arguments.output, arguments.data):
        raise UsageError(
            f"--output {arguments.output} is or lies inside the data {arguments.data}; give a folder outside of the "
            "data"
        )
    for split in arguments.split or ("train", "val"):
        job, described = plan(split, arguments)
        manifest = write_split(job, arguments.workers, described)
        size = sum(shard.bytes for shard in manifest.shards)
        print(f"{job.folder}: {manifest.num_images:,} images in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB")
