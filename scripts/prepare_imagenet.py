"""Check the downloads of ImageNet-1k and build their index, so that training starts at once. Nothing is extracted.

    python scripts/prepare_imagenet.py data/imagenet [--cache DIR] [--skip-md5]

The folder holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as image-net.org
gives them to whoever agreed to its terms. Sizes are compared first, then MD5 sums: 155 GB are read, some minutes from a
fast disk. Then `train.py --data data/imagenet --set data.format=imagenet` reads the archives as they are.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import _python  # noqa: F401
from tqdm import tqdm

from seresnext.data.readers.imagenet import ARCHIVES, Archive, ImagenetReader
from seresnext.errors import DataError, path_argument
from seresnext.process.exit import run_script

_PIECE = 8 << 20


def check_sizes(folder: Path) -> None:
    """Raise DataError with everything that is missing or of another size than published."""
    problems = []
    for archive in ARCHIVES:
        path = folder / archive.name
        try:
            size = path.stat().st_size
        except OSError as error:
            problems.append(f"{archive.name}: {error.strerror}; download it from image-net.org (ILSVRC 2012)")
            continue
        if size < archive.size:
            problems.append(
                f"{archive.name}: {size:,} of {archive.size:,} bytes ({100 * size / archive.size:.1f} %); the download "
                "stopped: go on with it (wget --continue, curl --continue-at -)"
            )
        elif size > archive.size:
            problems.append(f"{archive.name}: {size:,} bytes, and {archive.size:,} are published; download it again")
    if problems:
        listing = "\n  ".join(problems)
        raise DataError(f"{folder} does not hold ImageNet's archives as published:\n  {listing}")


def check_md5(path: Path, archive: Archive) -> None:
    """Raise DataError when the sum of a file is not the published one. Shows a bar on a terminal."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with (
            path.open("rb", buffering=0) as file,
            tqdm(desc=f"MD5 of {path.name}", total=archive.size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while piece := file.read(_PIECE):
                digest.update(piece)
                bar.update(len(piece))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if digest.hexdigest() != archive.md5:
        raise DataError(
            f"{path} is damaged: its MD5 is {digest.hexdigest()}, and {archive.md5} is published; download it again"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the downloads of ImageNet-1k and build their index.")
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="the folder with the three downloads")
    parser.add_argument(
        "--cache", type=path_argument, metavar="DIR", help="where to keep the index, as data.cache of the recipe"
    )
    parser.add_argument("--skip-md5", action="store_true", help="compare sizes only")
    arguments = parser.parse_args()
    folder: Path = arguments.folder

    check_sizes(folder)
    print(f"{folder}: all three files have the published sizes", flush=True)
    if not arguments.skip_md5:
        for archive in sorted(ARCHIVES, key=lambda archive: archive.size):
            check_md5(folder / archive.name, archive)
            print(f"{archive.name}: MD5 as published", flush=True)
    for split in ("val", "train"):
        reader = ImagenetReader(folder, split, arguments.cache, official=True)
        print(f"{split}: {len(reader):,} images of {len(reader.classes):,} classes", flush=True)
    cache = f" --set data.cache={arguments.cache}" if arguments.cache else ""
    print(f"ready: python train.py --recipe seresnext50 --data {folder} --set data.format=imagenet{cache}")


if __name__ == "__main__":
    run_script(main, interrupted="interrupted; nothing was written")
