"""An image folder of scikit-learn's 1,797 handwritten digits: 1,437 for training, 360 for validation.

The digits, of 8 x 8 pixels with 17 levels of grey, become 32 x 32 PNG files. The split is fixed and stratified.
"""

from pathlib import Path

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
