"""All splits as one reader, the look at each image, and copies against a plain comparison."""

import hashlib
import itertools

import numpy as np
import pytest
from encoded_images import Images, encoded, turned
from faulty_photos import FAULTS, jpeg, photograph
from photographs import make
from PIL import Image

from seresnext.data.decode.pillow import Decoding
from seresnext.data.formats import open_reader
from seresnext.doctor import images
from seresnext.doctor import images as images_module
from seresnext.doctor.images import Collection, look_at, near_pairs


def test_a_collection_has_all_splits(faulty):
    images = Collection({split: open_reader(faulty, split) for split in ("train", "val")})
    names = [images.name(index) for index in range(len(images))]
    files = {str(path.relative_to(faulty)) for path in faulty.rglob("*.*")}
    assert set(names) == files
    assert len(names) == len(files) == 32 + len(FAULTS)
    for index in (0, 20, len(images) - 1):
        assert images.read(index) == (faulty / names[index]).read_bytes()
        split, name, _ = names[index].split("/")
        assert (split, name) == (images.split_names[images.splits[index]], images.classes[images.labels[index]])
    part = images.take(np.array([30, 3]))
    assert (len(part), part.name(0), part.read(1)) == (2, names[30], images.read(3))


def test_a_class_is_known_by_its_name(tmp_path):
    """A split without the class `a` numbers its classes from `b` on."""
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg")
    found = Collection({split: open_reader(tmp_path, split) for split in ("train", "val")})
    assert (found.classes, found.labels.tolist()) == (("a", "b"), [0, 1, 1])


def test_a_look_measures_an_image():
    """The oracles: pixels of two levels, and a checkerboard, whose Laplacian is 8 times the half of the contrast."""
    halves = np.full((64, 64, 3), 50, np.uint8)
    halves[:, 32:] = 200
    board = np.where(np.indices((64, 64)).sum(0) % 2, 40, 10).astype(np.uint8)
    files = [encoded(Image.fromarray(each), "PNG") for each in (halves, board, np.zeros((2, 2), np.uint8))]
    looks, errors = look_at(Images(*files), Decoding(10**6))
    assert errors == {}
    assert looks["digest"].tolist() == [hashlib.sha256(data).digest() for data in files]
    assert looks["size"].tolist() == [[64, 64], [64, 64], [2, 2]]
    np.testing.assert_allclose(looks["light"][:2], [[50, 50, 200], [10, 10, 40]])
    assert looks["sharpness"][1] == pytest.approx(64)
    assert looks["sharpness"][2] == 0
    assert (looks["bits"].shape, looks["pixels"].shape, looks["pixels"].dtype) == ((3, 64), (3, 768), np.uint8)


def test_bad_and_odd_files(monkeypatch):
    monkeypatch.setattr(images_module, "_AT_ONCE", 2)
    image = photograph(1)
    files = [
        jpeg(image)[:-500],
        b"text",
        jpeg(image, exif=turned(6)),
        encoded(image.convert("CMYK")),
        encoded(image.convert("RGBA"), "PNG"),
        jpeg(image.resize((200, 64))),
        jpeg(image),
    ]
    looks, errors = look_at(Images(*files), Decoding(10**6))
    assert list(errors) == [0, 1]
    assert "text" in errors[1]
    assert not errors[1].startswith("image 1")  # A finding has the name apart.
    assert list(looks["kinds"]) == ["turned by EXIF", "CMYK", "transparent", "200 x 64 pixels", ""]
    assert look_at(Images(files[2]), Decoding(10**6, exif_rotation=True))[0]["kinds"].tolist() == [""]
    assert list(look_at(Images(files[-1]), Decoding(64 * 64 - 1))[1]) == [0]


@pytest.mark.parametrize("rows", [3, 256])
def test_the_pairs_are_those_of_a_plain_comparison(rows, monkeypatch):
    monkeypatch.setattr(images, "_ROWS", rows)
    rng = np.random.default_rng(0)
    bits, pixels = rng.random((40, 64)) < 0.5, rng.integers(0, 256, (40, 48), dtype=np.uint8)
    for index in range(20, 40):  # The hash differs in 0 to 19 bits; each second thumbnail is another one.
        bits[index] = bits[index - 20]
        bits[index, : index - 20] ^= True
        pixels[index] = pixels[index - 20] // 2 + 40 if index % 2 else pixels[index]
    expected = [
        [i, j]
        for i, j in itertools.combinations(range(40), 2)
        if (bits[i] != bits[j]).sum() <= 12 and np.corrcoef(pixels[i], pixels[j])[0, 1] >= 0.9
    ]
    assert sorted(near_pairs(bits, pixels).tolist()) == expected
    assert len(expected) == 6
    assert near_pairs(bits[:0], pixels[:0]).shape == (0, 2)


def test_equal_pictures_without_end_are_cut_off(monkeypatch, capsys):
    monkeypatch.setattr(images, "_ROWS", 8)
    monkeypatch.setattr(images, "MOST_PAIRS", 100)
    bits, pixels = np.ones((500, 64), bool), np.tile(np.arange(48, dtype=np.uint8), (500, 1))
    assert 100 < len(near_pairs(bits, pixels)) < 8 * 500
    assert "only 8 images are compared with all" in capsys.readouterr().err


def test_altered_copies_are_found_and_other_photographs_are_not():
    photographs = [photograph(number, 80) for number in range(60)]
    copies = [
        photographs[0].resize((50, 50)),
        photographs[1].resize((160, 160)),
        photographs[2].crop((1, 2, 79, 79)),
        photographs[3].point(lambda level: level * 0.9 + 10),
    ]
    files = [jpeg(image) for image in photographs] + [jpeg(image, 40) for image in copies]
    looks, _ = look_at(Images(*files), Decoding(10**6))
    assert near_pairs(looks["bits"], looks["pixels"]).tolist() == [[0, 60], [1, 61], [2, 62], [3, 63]]
