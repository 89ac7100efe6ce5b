"""Plain tar shards of an image folder or of ImageNet's archives, shuffled, for fast disks and for servers.

Without options, the bytes of the images do not change. `short_side` resizes larger images and encodes them as JPEG with
4:2:0 colour, the fastest to decode. `quality` alone encodes every image again at the same size. Pixels are not turned:
the EXIF orientation of an encoded image stays. The same images and options give the same bytes with any number of
workers. After a stop, the same command keeps every finished shard.
"""

import fcntl
import hashlib
import io
import json
import os
import re
import tarfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from seresnext.data.decode.kinds import ENDINGS, kind_of, not_an_image
from seresnext.data.decode.pillow import ORIENTATION, Decoding, decode_as_stored, is_gray
from seresnext.data.formats import detect_format, open_reader
from seresnext.data.readers import Reader
from seresnext.data.shards.format import INDEX, MANIFEST, MOST_PARTS, Manifest, Shard, index_bytes, list_shard
from seresnext.errors import DataError, Failure, UsageError, as_utf8, listed, printable
from seresnext.files import new_file, read_lines, write_atomically, writing_to
from seresnext.process.signals import FORK, init_worker
from seresnext.progress import progress, warn
from seresnext.randomness import permutation_at
from seresnext.run.folder import lies_in

_OPTIONS = "options.json"  # of an unfinished folder


@dataclass(frozen=True)
class Job:
    """The shards of one split: the folder, their names, the order of the images, and the options.

    The bytes depend on nothing else. `work` is the folder until all shards are finished, and `known` has the checksums
    of shards that were finished before, by name.
    """

    reader: Reader
    folder: Path
    order: np.ndarray
    options: dict[str, Any]
    decoding: Decoding
    names: tuple[str, ...]
    work: Path
    known: dict[str, str] = field(default_factory=dict)

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
            image = image.resize(size, Image.Resampling[options["interpolation"].upper()])
        elif kind == "JPEG":
            return data, ending
    if is_gray(data) and decoding.background is None:
        image = image.convert("L")  # Exact, and decoding costs half.
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation  # It stays, so that data.exif_rotation means the same for shards.
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", exif=exif if orientation > 1 else b"")
    return buffer.getvalue(), ".jpg"


_job: Job  # Forked workers share the reader.


def write_shard(number: int) -> tuple[Shard, np.ndarray]:
    """Write a shard of `_job`, unless the shard is finished and intact. Return shard and index entries."""
    job = _job
    name, num_classes = job.names[number], len(job.reader.classes)
    target, part = job.work / name, job.work / f"{name}.part"
    with suppress(DataError):  # The shard is missing or damaged.
        shard, entries = list_shard(target, num_classes)
        if job.known.get(name, shard.sha256) == shard.sha256:
            return shard, entries
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
    part.replace(target)
    return list_shard(target, num_classes)  # A shard that the reader would refuse is refused now.


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # Time 0, owner 0: the same images give the same bytes.
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_shards(job: Job, workers: int) -> list[tuple[Shard, np.ndarray]]:
    """Write all shards of a split with several processes. Return the shards and their index entries."""
    global _job
    _job = job
    pool = ProcessPoolExecutor(min(workers, len(job.names)), mp_context=FORK, initializer=init_worker)
    try:
        numbers = {pool.submit(write_shard, number): number for number in range(len(job.names))}
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
    """Write the shards of a split and their index, in a folder that gets its name when all is written.

    In a finished folder, damaged shards are written again. Raises DataError if the folder has anything else.
    """
    if known := _finished_shards(job):
        job = replace(job, work=job.folder, known=known, names=tuple(known))
    job.work.mkdir(parents=True, exist_ok=True)
    with _lock(job.work):
        note, options = job.work / _OPTIONS, json.dumps(job.options)
        if not known and not (note.exists() and note.read_text() == options):
            for shard in job.work.iterdir():  # They have other options.
                shard.unlink()
            note.write_text(options)
        shards, listings = zip(*write_shards(job, workers), strict=True)
        manifest = write_index(job.work, job.reader.classes, shards, listings, job.options)
        if not known:
            os.sync()  # A loss of power must not leave a finished folder with unfinished files.
            job.work.rename(job.folder)
            (job.folder / _OPTIONS).unlink()
    return manifest


def _finished_shards(job: Job) -> dict[str, str]:
    """Return the checksums of the shards of a finished folder by name, nothing for a new or empty folder.

    Raises DataError if the folder has shards of other images or options, or other files.
    """
    path = job.folder / MANIFEST
    if path.exists():
        found = Manifest.from_text(path.read_bytes(), str(path))
        changed = [key for key in job.options if found.options.get(key) != job.options[key]]
        if changed:
            listing = ", ".join(f"{key}: {found.options.get(key)}, now {job.options[key]}" for key in changed)
            raise DataError(f"{job.folder} has other shards ({listing}); give another --output, or remove the folder")
        return {shard.name: shard.sha256 for shard in found.shards}
    if job.folder.is_file() or job.folder.is_symlink():  # The folder of unfinished shards cannot get the name.
        raise DataError(f"{job.folder} is a file or a link; give another --output, or remove the file or the link")
    if others := sorted(path.name for path in job.folder.glob("*")):
        names = ", ".join(listed(others))
        raise DataError(f"{job.folder} has other files: {names}; give another --output, or remove the files")
    return {}


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(f"another `seresnext prepare shards` writes to {folder}; wait until it ends") from None
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # A worker that is being killed has a copy of the descriptor.
        os.close(descriptor)


def write_index(
    folder: Path, classes: tuple[str, ...], shards: Sequence[Shard], listings: Sequence[np.ndarray], options: dict
) -> Manifest:
    """Write `index.npy`, then `index.json`. The second file makes the folder usable."""
    content = index_bytes(listings)
    manifest = Manifest(classes, tuple(shards), hashlib.sha256(content).hexdigest(), options)
    with new_file(folder / INDEX) as file:  # A training may have mapped the old file.
        file.write(content)
    write_atomically(folder / MANIFEST, manifest.to_text())
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
            shard, entries = list_shard(path, len(classes))
            if not shard.images:
                raise DataError(f"{path} has no images; remove the file")
            shards.append(shard)
            listings.append(entries)
            advance(shard.bytes)
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
    options = {name: getattr(arguments, name) for name in ("images_per_shard", "seed", "short_side", "quality")}
    options["source"] = reader.fingerprint
    if arguments.quality is not None:
        options |= {"subsampling": "4:2:0", "interpolation": arguments.interpolation if arguments.short_side else None}
        # Another version of the encoder may write other bytes for the same pixels.
        options["encoder"] = f"Pillow {Image.__version__}, libjpeg {features.version('jpg')}"
        options["background"] = arguments.background and list(arguments.background)
    decoding = Decoding(arguments.max_pixels, exif_rotation=True, background=arguments.background)
    num_shards = -(-len(order) // arguments.images_per_shard)
    if num_shards > MOST_PARTS:
        raise UsageError(f"{num_shards} shards are more than {MOST_PARTS}; give a larger --images-per-shard")
    if len(reader.classes) > MOST_PARTS:
        raise DataError(
            f"{root} has {len(reader.classes)} classes, and shards have at most {MOST_PARTS}; merge classes"
        )
    names = tuple(f"{split}-{number:05}.tar" for number in range(num_shards))
    work = arguments.output / f".{split}.unfinished"
    return Job(reader, arguments.output / split, order, options, decoding, names, work)


def prepare_shards(arguments: Namespace) -> None:
    """Write the shards of each split. Raises UsageError if the output lies inside the data.

    `arguments` are those of the command, see seresnext/commands/prepare.py.
    """
    if lies_in(arguments.output, arguments.data):
        raise UsageError(f"--output {arguments.output} lies inside the data {arguments.data}; give another folder")
    for job in [plan(split, arguments) for split in arguments.split or ("train", "val")]:
        with writing_to(job.folder):
            manifest = write_split(job, arguments.workers)
        size = sum(shard.bytes for shard in manifest.shards)
        print(f"{job.folder}: {manifest.num_images:,} images in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB")
