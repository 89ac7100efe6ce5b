"""Write plain tar shards of an image folder or of ImageNet's archives, shuffled, for fast disks and for servers.

    python scripts/prepare_shards.py DATA --output DIR [--short-side 256 --quality 90] [--workers 8]
    python scripts/prepare_shards.py --index FOLDER --classes FILE      # of shards that something else wrote

DIR gets a folder for each split: `train-00000.tar` and so on in the layout of WebDataset (`KEY.jpg`, `KEY.cls`), and an
index with checksums. Train with `--data DIR --set data.format=shards`, or put DIR on a server and give its address.

Without options the bytes of the images stay as they are. With `--short-side`, images whose shorter side is longer are
made smaller (Pillow, antialiased) and encoded as JPEG with 4:2:0 colour, as most JPEGs are and as decodes fastest; a
JPEG that is small already stays as it is. `--quality` alone encodes every image anew at its size.

The same images and options give the same bytes with any number of workers. The command can be stopped: given again, it
keeps every shard that is finished and whole. A shard appears complete or not at all.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import io
import json
import os
import re
import signal
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _python  # noqa: F401
import numpy as np
from PIL import Image, features

from seresnext.data.decode.formats import JPEG, PNG
from seresnext.data.decode.pillow import decode, is_gray, not_an_image
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
from seresnext.errors import DataError, Failure, UsageError, path_argument
from seresnext.process.exit import run_script
from seresnext.process.fork import FORK
from seresnext.progress import progress, warn
from seresnext.randomness import permutation_at
from seresnext.run.folder import lies_in

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# What a tar file needs for an image beside its bytes: two headers, a label, and filling.
_TAR_BYTES = 512 + 256 + 512 + 512
# Of how many images the mean size is taken, to know how many make a shard.
_SAMPLE = 64
_WORK = ".progress"
_LISTED = 10


@dataclass(frozen=True)
class Options:
    """What the bytes of shards depend on, beside the images."""

    short_side: int | None
    quality: int | None
    interpolation: str
    seed: int

    @property
    def encodes(self) -> bool:
        """Whether any image is encoded anew."""
        return self.quality is not None


@dataclass(frozen=True)
class Job:
    """The shards of one split: which images are in which, and where they are written."""

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
    """The bytes of an image for a shard, and the ending that says what they are. Raises DataError naming the image."""
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
            # As the evaluation resizes, so that 256 here and 224 / 0.875 there are the same size.
            size = (int(options.short_side * width / shorter), int(options.short_side * height / shorter))
            image = image.resize(size, _FILTERS[options.interpolation])
        elif ending == "jpg":
            return data, ending
    if is_gray(data):
        image = image.convert("L")  # Exact, and decoding takes half the work.
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality, subsampling="4:2:0")
    return buffer.getvalue(), "jpg"


def images_per_shard(reader: Reader, order: np.ndarray, options: Options, max_pixels: int, size: int) -> int:
    """How many images make a shard of about `size` bytes, from the mean of some."""
    sample = order[:_SAMPLE].tolist()
    sizes = [len(encode(reader.read(i), reader.name(i), options, max_pixels)[0]) for i in sample]
    return max(1, round(size / (sum(sizes) / len(sizes) + _TAR_BYTES)))


# ------------------------------------------------------------------------------------------------ shards


def write_shard(job: Job, number: int, advance: Any) -> tuple[Shard, np.ndarray]:
    """Write a shard and what is to be known of it, unless it is there and whole already. Returns also its images."""
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
    # Read back before it counts: what the reader would refuse is refused now.
    listing = list_shard(part, len(job.reader.classes))
    assert len(listing.entries) == len(positions)
    shard = Shard(target.name, part.stat().st_size, len(positions), listing.sha256)
    # What is known of a shard comes first: stopped between the two, it is known of a shard that is not there yet.
    _write(note, json.dumps({"made_by": job.digest, **asdict(shard)}).encode())
    part.replace(target)
    return shard, listing.entries


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # Time 0, owner 0: the same images give the same bytes.
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _finished(job: Job, target: Path, note: Path) -> tuple[Shard, np.ndarray] | None:
    try:
        said = json.loads(note.read_bytes())
        made_by = said.pop("made_by")
        shard = Shard(**said)
        listing = list_shard(target, len(job.reader.classes))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, DataError):
        return None  # Not there, or damaged.
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
    """In a worker: Ctrl-C is for the parent, which ends the workers; and none outlives it."""
    global _job, _counter
    _job, _counter = job, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # As seresnext.distributed.launch does, whose torch takes seconds to import.
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))


def _work(number: int) -> tuple[Shard, np.ndarray]:
    def advance(count: int) -> None:
        with _counter.get_lock():
            _counter.value += count

    return write_shard(_job, number, advance)


def write_shards(job: Job, workers: int) -> list[tuple[Shard, np.ndarray]]:
    """Write all shards of a split by several processes; the shards and their images."""
    context = FORK
    counter = context.Value("q", 0)
    workers = min(workers, job.num_shards)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(job, counter))
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
            "a worker died, perhaps for lack of memory; give fewer --workers. What is finished is kept: the same "
            "command goes on"
        ) from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()


def prepare(job: Job, workers: int, options: dict[str, Any]) -> Manifest:
    """Write the shards of a split and their index. Raises DataError when others are there."""
    _refuse_others(job, options)
    (job.folder / _WORK).mkdir(parents=True, exist_ok=True)
    with _alone(job.folder):
        _take_notes(job)
        _clear_away(job)
        for part in (job.folder / _WORK).glob("*.part"):
            part.unlink()
        shards, listings = (list(column) for column in zip(*write_shards(job, workers), strict=True))
        manifest = write_index(job.folder, job.reader.classes, shards, listings, options)
        for file in (job.folder / _WORK).iterdir():
            file.unlink()
    (job.folder / _WORK).rmdir()
    return manifest


def _refuse_others(job: Job, options: dict[str, Any]) -> None:
    """A folder that holds finished shards of other images or options, or tar files of other origin, is left alone."""
    manifest = job.folder / MANIFEST
    known = {note.stem for note in (job.folder / _WORK).glob("*.json")}
    if manifest.exists():
        said = Manifest.from_text(manifest.read_bytes(), str(manifest))
        known = {shard.name for shard in said.shards} & job.names
        before = said.options
        changed = [key for key in options if before.get(key) != options[key]]
        if changed:
            listing = ", ".join(f"{key}: {before.get(key)} there, {options[key]} now" for key in changed)
            raise DataError(f"{job.folder} holds other shards ({listing}); give another --output, or remove it")
    foreign = sorted({path.name for path in job.folder.glob("*.tar")} - known)
    if foreign:
        more = f" and {len(foreign) - _LISTED} more" if len(foreign) > _LISTED else ""
        raise DataError(
            f"{job.folder} holds {', '.join(foreign[:_LISTED])}{more}, which are not of these shards; give another "
            "--output, or remove them"
        )


def _clear_away(job: Job) -> None:
    """Remove what a run with other options wrote that was not finished; its shards would lie beside the index."""
    names = job.names
    for note in (job.folder / _WORK).glob("*.json"):
        if note.stem not in names:
            (job.folder / note.stem).unlink(missing_ok=True)
            note.unlink()


def _take_notes(job: Job) -> None:
    """Where a split was finished before, its index knows the checksums; then only damaged shards are written anew."""
    manifest = job.folder / MANIFEST
    if manifest.exists():
        for shard in Manifest.from_text(manifest.read_bytes(), str(manifest)).shards:
            text = json.dumps({"made_by": job.digest, **asdict(shard)})
            _write(job.folder / _WORK / f"{shard.name}.json", text.encode())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / _WORK / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another prepare_shards.py writes to {folder}; wait for it") from None
        yield


def write_index(
    folder: Path, classes: tuple[str, ...], shards: list[Shard], listings: list[np.ndarray], options: dict[str, Any]
) -> Manifest:
    """Write `index.npy`, and then `index.json`, which makes the folder usable."""
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


def index_existing(folder: Path, classes_file: Path) -> Manifest:
    """Write the index of shards that something else wrote. Raises DataError naming the member that is no image."""
    classes = read_classes(classes_file)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"{folder} holds no .tar files")
    shards, listings = [], []
    with progress(str(folder), sum(path.stat().st_size for path in paths), "B") as advance:
        for path in paths:
            listing = list_shard(path, len(classes))
            if not len(listing.entries):
                raise DataError(f"{path} holds no images; remove it")
            shards.append(Shard(path.name, path.stat().st_size, len(listing.entries), listing.sha256))
            listings.append(listing.entries)
            advance(shards[-1].bytes)
    return write_index(folder, classes, shards, listings, {"source": "existing shards"})


# ------------------------------------------------------------------------------------------------ command


def plan(root: Path, split: str, output: Path, arguments: argparse.Namespace) -> tuple[Job, dict[str, Any]]:
    """What is to be done for a split, and its description for the index."""
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
        # Another encoder may write other bytes for the same pixels.
        described |= {"encoder": f"Pillow {Image.__version__}, libjpeg {features.version('jpg')}"}
    else:
        described |= {"short_side": None, "quality": None}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    job = Job(reader, output / split, order, per_shard, options, arguments.max_pixels, digest)
    if job.num_shards > MOST_SHARDS or len(reader.classes) > MOST_CLASSES:
        raise UsageError(f"{job.num_shards} shards are more than {MOST_SHARDS}; give a larger --shard-size")
    return job, described


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write tar shards of an image folder or of ImageNet's archives.",
        epilog="The same command again goes on where it was stopped.",
    )
    parser.add_argument(
        "data", nargs="?", type=path_argument, metavar="DATA", help="an image folder, or ImageNet's archives"
    )
    parser.add_argument("--output", type=path_argument, metavar="DIR", help="where the shards go")
    parser.add_argument("--split", action="append", metavar="NAME", help="repeatable (default: train and val)")
    parser.add_argument("--format", choices=("folder", "imagenet"), default="folder", help="default: as DATA looks")
    parser.add_argument("--short-side", type=int, metavar="PIXELS", help="make larger images this small")
    parser.add_argument("--quality", type=int, metavar="1-95", help="of JPEG; 90 with --short-side")
    parser.add_argument("--interpolation", choices=tuple(_FILTERS), default="bilinear")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the images (default: 0)")
    parser.add_argument("--shard-size", type=int, default=128, metavar="MB", help="about so large (default: 128)")
    parser.add_argument("--images-per-shard", type=int, metavar="N", help="exactly so many instead")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--max-pixels", type=int, default=50_000_000, help="a larger image is an error")
    parser.add_argument(
        "--cache", type=path_argument, metavar="DIR", help="where the index of DATA is kept, as data.cache"
    )
    parser.add_argument(
        "--index", type=path_argument, metavar="FOLDER", help="write the index of shards that are there"
    )
    parser.add_argument(
        "--classes", type=path_argument, metavar="FILE", help="for --index: class names, a line each, by label"
    )
    arguments = parser.parse_args()
    if arguments.index:
        if not arguments.classes:
            parser.error("--index needs --classes FILE")
        return arguments
    if not arguments.data or not arguments.output:
        parser.error("give DATA and --output DIR")
    for name in ("short_side", "quality", "shard_size", "images_per_shard", "workers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.quality is not None and arguments.quality > 95:
        parser.error("--quality is at most 95; above, JPEG only grows")
    if arguments.shard_size * 1_000_000 > LARGEST_SHARD // 2:
        parser.error("--shard-size is at most 2000")
    if arguments.short_side and arguments.quality is None:
        arguments.quality = 90
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.index:
        manifest = index_existing(arguments.index, arguments.classes)
        print(f"{arguments.index}: {manifest.num_images:,} images in {len(manifest.shards)} shards")
        return
    if lies_in(arguments.output, arguments.data):
        raise UsageError(
            f"--output {arguments.output} is or lies inside the data {arguments.data}; give a folder outside of the "
            "data"
        )
    for split in arguments.split or ("train", "val"):
        job, described = plan(arguments.data, split, arguments.output, arguments)
        manifest = prepare(job, arguments.workers, described)
        size = sum(shard.bytes for shard in manifest.shards)
        print(f"{job.folder}: {manifest.num_images:,} images in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB")


if __name__ == "__main__":
    run_script(main, interrupted="stopped; what is finished is kept, the same command goes on")
