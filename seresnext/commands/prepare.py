"""`seresnext prepare`: make image folders and shards, and check downloads."""

import os
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from seresnext.arguments import Parser, count_argument, path_argument, quality_argument
from seresnext.errors import UsageError


def digits_arguments(parser: Parser) -> None:
    """Declare the arguments of `prepare digits`."""
    parser.add_argument("--output", type=path_argument, default=Path("data/digits"), metavar="DIR")


def digits(options: Namespace) -> None:
    """Make an image folder of scikit-learn's handwritten digits."""
    from seresnext.prepare.folders import prepare_digits

    prepare_digits(options.output)


def cifar10_arguments(parser: Parser) -> None:
    """Declare the arguments of `prepare cifar10`."""
    parser.add_argument("archive", type=path_argument, metavar="cifar-10-binary.tar.gz")
    parser.add_argument("--output", type=path_argument, default=Path("data/cifar10"), metavar="DIR")


def cifar10(options: Namespace) -> None:
    """Make an image folder of CIFAR-10's binary archive."""
    from seresnext.prepare.folders import prepare_cifar10

    prepare_cifar10(options.archive, options.output)


def imagenet_arguments(parser: Parser) -> None:
    """Declare the arguments of `prepare imagenet`."""
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="the folder with the three downloads")
    parser.add_argument("--cache", type=path_argument, metavar="DIR", help="the folder of the index: data.cache")
    parser.add_argument("--skip-md5", action="store_true", help="compare sizes only")


def imagenet(options: Namespace) -> None:
    """Check the downloads of ImageNet-1k and build their index.

    Sizes come first, since the MD5 sums read 155 GB: some minutes from a fast disk. Nothing is extracted.
    """
    from seresnext.data.readers.imagenet import ARCHIVES, ImagenetReader, check_md5, check_sizes

    folder = options.folder
    check_sizes(folder)
    print(f"{folder}: all three files have the published sizes", flush=True)
    if not options.skip_md5:
        for archive in sorted(ARCHIVES, key=lambda archive: archive.size):
            check_md5(folder / archive.name, archive)
            print(f"{archive.name}: MD5 as published", flush=True)
    for split in ("val", "train"):
        reader = ImagenetReader(folder, split, options.cache)
        print(f"{split}: {len(reader):,} images of {len(reader.classes):,} classes", flush=True)
    option = f" --set data.cache={options.cache}" if options.cache else ""
    print(f"ready: seresnext train --recipe seresnext50 --data {folder} --set data.format=imagenet{option}")


def shards_arguments(parser: Parser) -> None:
    """Declare the arguments of `prepare shards`."""
    parser.epilog = "The same command again continues after a stop. docs/shards.md has examples."
    add = parser.add_argument
    add("data", nargs="?", type=path_argument, metavar="DATA", help="an image folder, or ImageNet's archives")
    add("--output", type=path_argument, metavar="DIR", help="the folder of the shards")
    add("--split", action="append", metavar="NAME", help="repeatable (default: train and val)")
    add("--format", choices=("folder", "imagenet"), default="folder", help="default: as DATA looks")
    add("--short-side", type=count_argument, metavar="PIXELS", help="resize larger images to this shorter side")
    add("--quality", type=quality_argument, metavar="1-95", help="of JPEG; 90 with --short-side")
    add("--interpolation", choices=("bilinear", "bicubic"), default="bilinear", help="default: bilinear")
    add("--background", type=_color, metavar="R,G,B", help="behind transparent pixels; for encoded images")
    add("--seed", type=int, default=0, help="of the order of the images (default: 0)")
    add("--images-per-shard", type=count_argument, default=1000, metavar="N", help="default: 1000")
    add("--workers", type=count_argument, default=os.cpu_count() or 1, metavar="N", help="processes")
    add("--max-pixels", type=count_argument, default=50_000_000, metavar="N", help="a larger image is an error")
    add("--cache", type=path_argument, metavar="DIR", help="the folder of the index of DATA: data.cache")
    add("--index", type=path_argument, metavar="FOLDER", help="write the index of existing shards")
    add("--classes", type=path_argument, metavar="FILE", help="for --index: a class name a line, by label")


def _color(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
        raise ArgumentTypeError("write red, green and blue of 0 to 255, such as 255,255,255")
    return tuple(map(int, parts))


def shards(options: Namespace) -> None:
    """Write tar shards of an image folder or of ImageNet's archives.

    With `--index`, write the index of existing shards. Raises UsageError for options that do not fit together.
    """
    if options.index:
        if not options.classes:
            raise UsageError("--index needs --classes FILE")
    elif not options.data or not options.output:
        raise UsageError("DATA or --output is missing; give DATA and --output DIR")
    if options.short_side and options.quality is None:
        options.quality = 90
    if options.background and options.quality is None:
        raise UsageError("--background is for images that are encoded again; add --quality or --short-side")
    from seresnext.prepare.shards import index_existing, prepare_shards

    if options.index:
        index_existing(options.index, options.classes)
    else:
        prepare_shards(options)
