"""Image folders of scikit-learn's handwritten digits and of CIFAR-10, with 32 x 32 PNG files.

The 1,797 digits, of 8 x 8 pixels with 17 levels of grey, become 1,437 images for training and 360 for validation. The
split is fixed and stratified. CIFAR-10 has 50,000 images for training and 10,000 for validation. The source is the
"binary version" of the authors, without Python pickles. The archive is read as a stream.
"""

import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from seresnext.errors import DataError
from seresnext.files import new_folder
from seresnext.process.packages import extra
from seresnext.randomness import permutation_at

SIZE = 32  # pixels: four times the original; the last stage of the network still has a map of more than one pixel
VALIDATION_IMAGES = 360


def validation_indices(labels: np.ndarray) -> np.ndarray:
    """Return the indices (int64, sorted) of the validation images: of each class the share of 360, within one image."""
    classes, counts = np.unique(labels, return_counts=True)
    share = VALIDATION_IMAGES * counts / len(labels)
    quota = np.floor(share).astype(int)
    # The classes with the largest remainders get the images that are left over after rounding down.
    quota[np.argsort(quota - share, kind="stable")[: VALIDATION_IMAGES - quota.sum()]] += 1
    chosen = [
        np.flatnonzero(labels == label)[permutation_at(0, "digits", int(label), count=int(count))[:number]]
        for label, count, number in zip(classes, counts, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def write_digits(folder: Path) -> None:
    """Write `train/<digit>/` and `val/<digit>/` into an empty folder."""
    with extra("demo"):
        from sklearn.datasets import load_digits

    images, labels = map(np.asarray, load_digits(return_X_y=True))  # N 64, grey levels 0 to 16
    in_validation = np.isin(np.arange(len(labels)), validation_indices(labels))
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        image = Image.fromarray(np.round(pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))
        target = folder / ("val" if in_validation[index] else "train") / str(label)
        target.mkdir(parents=True, exist_ok=True)
        image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(target / f"{index:04}.png")


def prepare_digits(output: Path) -> None:
    """Write the folder, complete or not at all. A complete folder stays as it is; another one raises DataError."""
    if output.exists():
        train, val = (len(list((output / split).glob("*/*.png"))) for split in ("train", "val"))
        if (train, val) != (1797 - VALIDATION_IMAGES, VALIDATION_IMAGES):
            raise DataError(
                f"{output} exists, but is not the folder of digits ({train} and {val} images, not 1,437 and 360); "
                "move the folder away or give another --output"
            )
        print(f"{output}: {train} training and {val} validation images are there already")
        return
    with new_folder(output) as folder:
        write_digits(folder)
    print(f"{output}: wrote {1797 - VALIDATION_IMAGES} training and {VALIDATION_IMAGES} validation images")


# A record: one byte of label, then 1,024 bytes each of red, green and blue (https://www.cs.toronto.edu/~kriz/cifar.html).
RECORD = 1 + 3 * 32 * 32
BATCHES = {f"data_batch_{number}.bin": "train" for number in range(1, 6)} | {"test_batch.bin": "val"}
CLASS_NAMES = "batches.meta.txt"
MAX_BYTES = 64 << 20  # of a file in the archive; a batch has 31 MB


def read_archive(archive: Path) -> dict[str, bytes]:
    """Return the six batches and the class names, by file name. Raises DataError for another archive."""
    found = {}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and (name in BATCHES or name == CLASS_NAMES):
                    content = tar.extractfile(member)
                    assert content is not None  # It is a regular file.
                    found[name] = content.read(MAX_BYTES)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be read: {error}; repeat the download") from None
    missing = sorted({*BATCHES, CLASS_NAMES} - found.keys())
    if missing:
        raise DataError(f"{archive} lacks {', '.join(missing)}; give CIFAR-10's cifar-10-binary.tar.gz")
    return found


def write_images(found: dict[str, bytes], folder: Path) -> dict[str, int]:
    """Write `train/<class>/` and `val/<class>/`. Return the number of images of each split."""
    classes = found[CLASS_NAMES].decode("ascii", "replace").split()
    for name in classes:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise DataError(f"{CLASS_NAMES} has {name!a:.60}, not a class name; give CIFAR-10's archive")
    counts = {"train": 0, "val": 0}
    for name, split in BATCHES.items():
        data = np.frombuffer(found[name], np.uint8)
        if data.size % RECORD:
            raise DataError(f"{name} is cut off: {data.size} bytes are not a multiple of {RECORD}; repeat the download")
        records = data.reshape(-1, RECORD)
        if records.size and records[:, 0].max() >= len(classes):
            raise DataError(f"{name} has label {records[:, 0].max()} of {len(classes)} classes; repeat the download")
        for record in records:
            target = folder / split / classes[record[0]]
            target.mkdir(parents=True, exist_ok=True)
            pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)  # 32 32 3
            Image.fromarray(np.ascontiguousarray(pixels)).save(target / f"{counts[split]:05}.png")
            counts[split] += 1
    return counts


def prepare_cifar10(archive: Path, output: Path) -> None:
    """Write the folder, complete or not at all. Raises DataError for another archive, or if `output` exists."""
    if output.exists():
        raise DataError(f"{output} exists already; move the folder away or give another --output")
    found = read_archive(archive)
    with new_folder(output) as folder:
        counts = write_images(found, folder)
    print(f"{output}: wrote {counts['train']:,} training and {counts['val']:,} validation images")
