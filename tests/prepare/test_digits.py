"""`seresnext prepare digits` as a user starts it."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image


def digit_images(folder: Path) -> dict[int, tuple[str, int]]:
    """Return split and class of each image by index in scikit-learn's data set."""
    return {int(path.stem): (path.parts[-3], int(path.parts[-2])) for path in folder.glob("*/*/*.png")}


def test_digits_are_split_fairly(digits_folder):
    images = digit_images(digits_folder)
    assert sorted(images) == list(range(1797))
    every = Counter(label for _, label in images.values())
    validation = Counter(label for split, label in images.values() if split == "val")
    assert validation.total() == 360
    for label, count in every.items():
        assert abs(validation[label] - count * 360 / 1797) < 1


def test_digits_are_the_digits(digits_folder):
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (split, label) in list(digit_images(digits_folder).items())[::29]:
        assert label == digits.target[index]
        with Image.open(digits_folder / split / str(label) / f"{index:04}.png") as image:
            assert (image.size, image.mode) == ((32, 32), "L")
            blocks = np.asarray(image, float).reshape(8, 4, 8, 4).mean((1, 3))  # back to 8 x 8
        distances = np.abs(digits.images * (255 / 16) - blocks).sum((1, 2))
        assert distances.argmin() == index  # nearer to its own original than to any other


def test_complete_digits_are_left_alone_and_others_refused(digits_folder, prepare, tmp_path):
    before = digits_folder.stat().st_mtime_ns
    assert "there already" in prepare("digits", "--output", digits_folder)
    assert digits_folder.stat().st_mtime_ns == before
    (tmp_path / "mine").mkdir()
    assert "not the folder of digits" in prepare("digits", "--output", tmp_path / "mine", code=3)
    assert list((tmp_path / "mine").iterdir()) == []
