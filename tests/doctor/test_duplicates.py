"""Near duplicates: the pairs against a plain comparison, and copies as people make them."""

import itertools

import numpy as np
import pytest
from encoded_images import Images
from faulty_photos import jpeg, photograph

from seresnext.data.decode.pillow import Decoding
from seresnext.doctor import duplicates
from seresnext.doctor.duplicates import near_pairs
from seresnext.doctor.images import look_at


@pytest.mark.parametrize("rows", [3, 256])
def test_the_pairs_are_those_of_a_plain_comparison(rows, monkeypatch):
    monkeypatch.setattr(duplicates, "_ROWS", rows)
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
    monkeypatch.setattr(duplicates, "_ROWS", 8)
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 100)
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
