"""Make an image folder of CIFAR-10: 50,000 images to train on, 10,000 to validate on, as 32 x 32 PNG files.

    python scripts/prepare_cifar10.py cifar-10-binary.tar.gz [--output data/cifar10]

Takes the "binary version" that the authors publish, which holds no Python pickles. The archive is read as a stream and
never unpacked. The folder appears complete or not at all.
"""

from __future__ import annotations

import argparse
import re
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

import _python  # noqa: F401
import numpy as np
from PIL import Image

from seresnext.errors import DataError, path_argument
from seresnext.process.exit import run_script

# As the authors' page describes a record: one byte of label, then 1,024 bytes each of red, green and blue.
RECORD = 1 + 3 * 32 * 32
BATCHES = {f"data_batch_{number}.bin": "train" for number in range(1, 6)} | {"test_batch.bin": "val"}
CLASS_NAMES = "batches.meta.txt"
MOST_BYTES = 64 << 20  # The limit for a file; a batch has 31 MB.


def read_archive(archive: Path) -> dict[str, bytes]:
    """The seven files that matter, by name. Raises DataError when it is not this archive."""
    found = {}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and (name in BATCHES or name == CLASS_NAMES):
                    content = tar.extractfile(member)
                    assert content is not None  # It is a regular file.
                    found[name] = content.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be read: {error}; download the archive again") from None
    missing = sorted({*BATCHES, CLASS_NAMES} - found.keys())
    if missing:
        raise DataError(f"{archive} lacks {', '.join(missing)}; it should be CIFAR-10's cifar-10-binary.tar.gz")
    return found


def write_images(found: dict[str, bytes], folder: Path) -> dict[str, int]:
    """Write `train/<class>/` and `val/<class>/`; returns how many images each split has."""
    classes = found[CLASS_NAMES].decode("ascii", "replace").split()
    for name in classes:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise DataError(f"{CLASS_NAMES} has {name!a:.60}, not the name of a class; give CIFAR-10's archive")
    counts = {"train": 0, "val": 0}
    for name, split in BATCHES.items():
        data = np.frombuffer(found[name], np.uint8)
        if data.size % RECORD:
            raise DataError(f"{name} is cut off: {data.size} bytes are not a multiple of {RECORD}")
        records = data.reshape(-1, RECORD)
        if records.size and records[:, 0].max() >= len(classes):
            raise DataError(f"{name} has label {records[:, 0].max()}, and there are {len(classes)} classes")
        for record in records:
            target = folder / split / classes[record[0]]
            target.mkdir(parents=True, exist_ok=True)
            pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)  # 32 32 3
            Image.fromarray(np.ascontiguousarray(pixels)).save(target / f"{counts[split]:05}.png")
            counts[split] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an image folder of CIFAR-10's binary archive.")
    parser.add_argument("archive", type=path_argument, metavar="cifar-10-binary.tar.gz")
    parser.add_argument("--output", type=path_argument, default=Path("data/cifar10"), metavar="DIR")
    arguments = parser.parse_args()
    output: Path = arguments.output

    if output.exists():
        raise DataError(f"{output} exists already; move it away or give another --output")
    found = read_archive(arguments.archive)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=output.parent) as temporary:
        made = Path(temporary) / "cifar10"
        counts = write_images(found, made)
        made.rename(output)
    print(f"{output}: wrote {counts['train']:,} training and {counts['val']:,} validation images")


if __name__ == "__main__":
    run_script(main)
