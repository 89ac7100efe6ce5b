"""Tar archives, and small archives of exactly the form of ImageNet's: a tar of tars, a tar of images, and a kit."""

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
VAL_CLASSES = [CLASSES[number] for number in (2, 0, 3, 1, 1, 0, 2, 3, 0, 3, 1, 2)]  # by the numbers of the images
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def jpeg(*seed: int) -> bytes:
    """A JPEG of noise, the same for the same numbers."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).resize((48 + seed[-1] % 5, 48)))


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


def train_archive(per_class: int) -> bytes:
    """The training archive. Classes and images have an order that differs from the order of names."""
    return tar(
        (f"{name}.tar", tar([(f"{name}_{17 * n % 100_003}.JPEG", jpeg(label, n)) for n in range(per_class)]))
        for label, name in enumerate(CLASSES)
    )


def devkit(truth: Sequence[str]) -> bytes:
    """The development kit: the challenge's number of each validation image's class, a line each."""
    numbers = {row.wordnet_id: row.ilsvrc_id for row in imagenet_classes()}
    lines = "".join(f"{numbers[name]}\n" for name in truth).encode()
    folder = "ILSVRC2012_devkit_t12"
    members = [special(folder, tarfile.DIRTYPE, ""), (f"{folder}/readme.txt", b"A kit.\n")]
    return gzip.compress(tar([*members, (f"{folder}/data/{TRUTH}", lines)]))


def write_archives(root: Path, per_class: int = 5) -> Path:
    """Write the training archive, the validation archive, in another order than the numbers, and the kit."""
    root.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0).permutation(len(VAL_CLASSES)) + 1
    val = tar((f"ILSVRC2012_val_{n:08}.JPEG", jpeg(99, int(n))) for n in numbers)
    (root / "ILSVRC2012_img_train.tar").write_bytes(train_archive(per_class))
    (root / "ILSVRC2012_img_val.tar").write_bytes(val)
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit(VAL_CLASSES))
    return root


def extract(archives: Path, root: Path) -> Path:
    """Write the images of `write_archives` as an image folder, by the standard recipe. Return the folder."""
    with tarfile.open(archives / "ILSVRC2012_img_train.tar") as outer:
        for entry in outer:
            with tarfile.open(fileobj=outer.extractfile(entry)) as inner:
                inner.extractall(root / "train" / entry.name.removesuffix(".tar"), filter="data")
    with tarfile.open(archives / "ILSVRC2012_img_val.tar") as outer:
        for wordnet_id, name in zip(VAL_CLASSES, sorted(outer.getnames()), strict=True):
            outer.extract(name, root / "val" / wordnet_id, filter="data")
    return root
