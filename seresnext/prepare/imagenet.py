"""Check of the downloads of ImageNet-1k, and their index, so that training starts at once. Nothing is extracted.

Sizes are compared first, then MD5 sums: 155 GB are read, which takes some minutes from a fast disk.
"""

import os
from pathlib import Path

from seresnext.data.readers.imagenet import ARCHIVES, ImagenetReader, check_md5
from seresnext.errors import DataError


def check_sizes(folder: Path) -> None:
    """Raise DataError that lists every missing file and every file with another size than published."""
    problems = []
    for archive in ARCHIVES:
        path = folder / archive.name
        size = path.stat().st_size if os.path.exists(path) else 0  # noqa: PTH110 (raises nothing)
        if size != archive.size:
            problems.append(f"{archive.name} has {size:,} bytes, and {archive.size:,} are published")
    if problems:
        heading = (
            f"{folder} does not hold ImageNet's archives as published; download each file from image-net.org (ILSVRC "
            "2012), or continue a download that stopped (wget --continue, curl --continue-at -):"
        )
        raise DataError("\n  ".join([heading, *problems]))


def prepare_imagenet(folder: Path, cache: Path | None, skip_md5: bool) -> None:
    """Check the three archives in a folder and build the index of both splits. Raises DataError.

    `cache` is the folder of the index, the recipe's `data.cache`.
    """
    check_sizes(folder)
    print(f"{folder}: all three files have the published sizes", flush=True)
    if not skip_md5:
        for archive in sorted(ARCHIVES, key=lambda archive: archive.size):
            check_md5(folder / archive.name, archive)
            print(f"{archive.name}: MD5 as published", flush=True)
    for split in ("val", "train"):
        reader = ImagenetReader(folder, split, cache)
        print(f"{split}: {len(reader):,} images of {len(reader.classes):,} classes", flush=True)
    option = f" --set data.cache={cache}" if cache else ""
    print(f"ready: seresnext train --recipe seresnext50 --data {folder} --set data.format=imagenet{option}")
