"""Tar archives, and small archives of exactly the form of ImageNet's: a tar of tars, a tar of images, and a kit."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from encoded_images import encoded
from PIL import Image

from seresnext.data.readers.imagenet_classes import imagenet_classes

# Out of order on purpose, by WordNet id and by the challenge's numbers.
CLASSES = ("n02119789", "n01440764", "n15075141", "n02100735")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def jpeg(*seed: int, size: int = 48) -> bytes:
    """A JPEG of noise, the same for the same numbers."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).resize((size + seed[-1] % 5, size)))


def special(name: str, kind: bytes = tarfile.SYMTYPE, link: str = "/etc/passwd") -> tarfile.TarInfo:
    """A member without contents, by default a link that leads outside."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def tar(
    members: Iterable[tuple[str, bytes] | tarfile.TarInfo] | Mapping[str, bytes], form: int = tarfile.GNU_FORMAT
) -> bytes:
    """A tar archive of regular files and of special members, in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for each in members.items() if isinstance(members, Mapping) else members:
            entry, content = (each, b"") if isinstance(each, tarfile.TarInfo) else (tarfile.TarInfo(each[0]), each[1])
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def extension(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header extension of the member that follows, by default of pax."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(body)
    return header.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


def train_archive(classes: Sequence[str] = CLASSES, per_class: int = 5) -> bytes:
    """The training archive. Classes and images have the given order, which differs from the order of names."""
    return tar(
        (f"{name}.tar", tar([(f"{name}_{17 * n % 100_003}.JPEG", jpeg(label, n)) for n in range(per_class)]))
        for label, name in enumerate(classes)
    )


def val_archive(count: int) -> bytes:
    """The validation archive: `count` images, in another order than the numbers."""
    numbers = np.random.default_rng(0).permutation(count) + 1
    return tar((f"ILSVRC2012_val_{n:08}.JPEG", jpeg(99, int(n))) for n in numbers)


def devkit(truth: Sequence[str]) -> bytes:
    """The development kit: the challenge's number of each validation image's class, a line each."""
    numbers = {row.wordnet_id: row.ilsvrc_id for row in imagenet_classes()}
    lines = "".join(f"{numbers[name]}\n" for name in truth).encode()
    folder = "ILSVRC2012_devkit_t12"
    members = [special(folder, tarfile.DIRTYPE, ""), (f"{folder}/readme.txt", b"A kit.\n")]
    return gzip.compress(tar([*members, (f"{folder}/data/{TRUTH}", lines)]))


def truth_of(classes: Sequence[str] = CLASSES, per_class: int = 3) -> list[str]:
    """Mixed classes for the validation images, in the order of the image numbers."""
    names = [name for name in classes for _ in range(per_class)]
    return [names[place] for place in np.random.default_rng(1).permutation(len(names))]


def write_archives(root: Path, classes: Sequence[str] = CLASSES, per_class: int = 5, val_per_class: int = 3) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    truth = truth_of(classes, val_per_class)
    (root / "ILSVRC2012_img_train.tar").write_bytes(train_archive(classes, per_class))
    (root / "ILSVRC2012_img_val.tar").write_bytes(val_archive(len(truth)))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit(truth))
    return root


def extract(archives: Path, root: Path) -> Path:
    """Write the images of `write_archives` as an image folder, by the standard recipe. Return the folder."""
    with tarfile.open(archives / "ILSVRC2012_img_train.tar") as outer:
        for entry in outer:
            with tarfile.open(fileobj=outer.extractfile(entry)) as inner:
                inner.extractall(root / "train" / entry.name.removesuffix(".tar"), filter="data")
    with tarfile.open(archives / "ILSVRC2012_img_val.tar") as outer:
        for wordnet_id, name in zip(truth_of(), sorted(outer.getnames()), strict=True):
            outer.extract(name, root / "val" / wordnet_id, filter="data")
    return root
