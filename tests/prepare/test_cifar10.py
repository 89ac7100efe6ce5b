"""`seresnext prepare cifar10`."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from imagenet_archives import tar
from PIL import Image


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
