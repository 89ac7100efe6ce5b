"""`seresnext prepare digits` and `seresnext prepare cifar10` as a user starts them."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from imagenet_archives import tar
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


@pytest.fixture
def cifar10_batches() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    batches = {"batches.meta.txt": b"airplane\nautomobile\nbird\n\n", "readme.html": b"<html>"}
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = [0, 1, 2, 0]
        batches[name] = records.tobytes()
    return batches


def write(tmp_path: Path, batches: dict[str, bytes]) -> Path:
    archive = tmp_path / "cifar.tar.gz"
    archive.write_bytes(gzip.compress(tar({f"cifar-10-batches-bin/{name}": data for name, data in batches.items()})))
    return archive


def test_cifar10_becomes_image_folders(prepare, tmp_path, cifar10_batches):
    output = tmp_path / "out"
    prepare("cifar10", write(tmp_path, cifar10_batches), "--output", output)
    assert len(list(output.glob("train/*/*.png"))) == 20
    assert sorted(path.name for path in (output / "val" / "airplane").iterdir()) == ["00000.png", "00003.png"]
    with Image.open(output / "val" / "bird" / "00002.png") as image:
        red, green, blue = image.getpixel((5, 1))  # column 5 of row 1
    record = cifar10_batches["test_batch.bin"][2 * 3073 :]
    assert (red, green, blue) == tuple(record[1 + plane * 1024 + 32 + 5] for plane in range(3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3.bin", None, "lacks data_batch_3.bin"),
        ("test_batch.bin", bytes(3072), "test_batch.bin is cut off"),
        ("batches.meta.txt", b"airplane\n../../bird\ncat", "../../bird"),
        ("batches.meta.txt", b"airplane\nbird\nK\xe4fer", "K\\ufffdfer"),
        ("test_batch.bin", bytes([3]) + bytes(3072), "has label 3 of 3 classes"),
    ],
)
def test_another_archive_is_refused(prepare, tmp_path, cifar10_batches, name, content, message):
    batches = {key: value for key, value in {**cifar10_batches, name: content}.items() if value is not None}
    archive = write(tmp_path, batches)
    assert message in prepare("cifar10", archive, "--output", tmp_path / "out", code=3)
    assert sorted(tmp_path.iterdir()) == [archive]  # Nothing half-made is left.
