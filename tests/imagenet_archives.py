"""Small archives of exactly the form of ImageNet's: a tar of tars, a tar of images, and a development kit."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from seresnext.data.readers.imagenet_classes import imagenet_classes

# Out of order on purpose, by WordNet id and by the challenge's numbers.
CLASSES = ("n02119789", "n01440764", "n15075141", "n02100735")
ILSVRC_IDS = {row.wordnet_id: row.ilsvrc_id for row in imagenet_classes()}


def jpeg(*seed: int, size: int = 48) -> bytes:
    """A JPEG of noise, the same for the same numbers."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((size + seed[-1] % 5, size)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(members: Sequence[tuple[str, bytes]] | Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive of regular files, in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def train_archive(classes: Sequence[str] = CLASSES, per_class: int = 5) -> bytes:
    """Write the training archive. Classes and images have the given order, which differs from the order of names."""
    return tar(
        [
            (f"{name}.tar", tar([(f"{name}_{17 * n % 100_003}.JPEG", jpeg(label, n)) for n in range(per_class)]))
            for label, name in enumerate(classes)
        ]
    )


def val_archive(count: int) -> bytes:
    """Write the validation archive: `count` images, in another order than the numbers."""
    numbers = np.random.default_rng(0).permutation(count) + 1
    return tar([(f"ILSVRC2012_val_{n:08}.JPEG", jpeg(99, int(n))) for n in numbers])


def meta_mat(numbers: Mapping[str, int] = ILSVRC_IDS) -> bytes:
    """Return the table of synsets of the kit, a MAT-file: 1,000 classes and two parent synsets."""
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    rows = np.zeros((len(numbers) + 2, 1), fields)
    by_number = sorted(numbers.items(), key=lambda item: item[1])
    for place, (name, number) in enumerate(by_number):
        rows[place, 0] = (float(number), name, f"words of {name}", 0.0, np.empty((1, 0)))
    for place in (len(numbers), len(numbers) + 1):
        rows[place, 0] = (place + 1.0, f"n0000{place}", "a fox, and others", 2.0, np.array([1.0, 2.0]))
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": rows}, do_compression=True)
    return buffer.getvalue()


def devkit(truth: Sequence[str], meta: bytes | None = None, folder: str = "ILSVRC2012_devkit_t12") -> bytes:
    """The development kit: the challenge's number of each validation image's class, a line each."""
    lines = "".join(f"{ILSVRC_IDS[name]}\n" for name in truth).encode()
    content = {f"{folder}/readme.txt": b"A kit.\n", f"{folder}/data/ILSVRC2012_validation_ground_truth.txt": lines}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo(f"{folder}/data")
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
        for name, data in {**content, **({f"{folder}/data/meta.mat": meta} if meta else {})}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def truth_of(classes: Sequence[str] = CLASSES, per_class: int = 3) -> list[str]:
    """Return mixed classes for the validation images, in the order of the image numbers."""
    names = [name for name in classes for _ in range(per_class)]
    return [names[place] for place in np.random.default_rng(1).permutation(len(names))]


def write_archives(root: Path, classes: Sequence[str] = CLASSES, per_class: int = 5, val_per_class: int = 3) -> Path:
    """Write all three files into a folder. Returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    truth = truth_of(classes, val_per_class)
    (root / "ILSVRC2012_img_train.tar").write_bytes(train_archive(classes, per_class))
    (root / "ILSVRC2012_img_val.tar").write_bytes(val_archive(len(truth)))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit(truth))
    return root
