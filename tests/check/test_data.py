"""The checks of the data: a good and a bad case for each verdict. Pillow is the oracle of odd images."""

import math
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
from encoded_images import Images, encoded, noise, turned
from PIL.PngImagePlugin import PngInfo

from seresnext.check import data
from seresnext.check.data import compare_splits, judge_counts, judge_images, judge_totals, look_at
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.distributed import World
from seresnext.recipe.load import load_recipe

WORLD = World()
GOOD = encoded(noise(60, 60))


class Local(Images):
    """Images of this machine."""

    has_local_files = True


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [((50, 60), "ok"), ((100, 10, 99), "ok"), ((101, 10, 99), "warning"), ((7, 0), "warning"), ((80, 10, 10), "ok"),
     ((81, 10, 9), "warning")],
)  # fmt: skip
def test_classes_of_very_different_sizes(counts, verdict):
    finding = judge_counts("training", [f"class {n}" for n in range(len(counts))], np.array(counts))
    assert finding.verdict == verdict
    assert finding.values["largest_share"] == max(counts) / sum(counts)
    assert f"{min(counts)} to {max(counts)} a class" in finding.measured
    assert bool(finding.source) == (verdict != "ok")


class Numbers:
    """A split with a number of images and ImageNet's classes."""

    def __init__(self, count, classes=()):
        self.count = count
        self.classes = classes or [row.wordnet_id for row in imagenet_classes()]

    def __len__(self):
        return self.count


def test_the_published_totals_of_imagenet():
    for train, verdict in ((1_281_167, "ok"), (1_281_166, "warning"), (1_281_168, "warning")):
        (finding,) = judge_totals({"training": Numbers(train), "validation": Numbers(50_000)})
        assert finding.verdict == verdict
    assert list(judge_totals({"training": Numbers(9, ("cat", "dog"))})) == list(judge_totals({})) == []


def looks(*images, settings=(), name="training", full=True):
    recipe = load_recipe("seresnext26", ["data.image_size=32", *settings]).recipe
    return look_at(name, Local(*images), recipe, WORLD, full)


KINDS = {
    "CMYK": encoded(noise(60, 60).convert("CMYK")),
    "turned": encoded(noise(60, 60), exif=turned(6)),
    "transparent": encoded(noise(60, 60).convert("RGBA"), "PNG"),
    "tiny": encoded(noise(60, 7)),
    "huge": encoded(noise(60, 60).resize((4000, 2501))),
    "bad": GOOD[:-300],
}
TEXT = PngInfo()
TEXT.add_text("a long text", "x" * (2 << 20), zip=True)  # Pillow cannot open the file without special care.
NORMAL = [
    GOOD,
    encoded(noise(8, 60)),
    encoded(noise(9, 9).resize((4000, 2500))),
    encoded(noise(60, 60), exif=turned(1)),
    encoded(noise(60, 60), "PNG", pnginfo=TEXT),
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_image_is_found_by_its_kind(kind):
    found = looks(*NORMAL, KINDS[kind])
    assert [len(kinds) for _, kinds in found[:-1]] == [0] * len(NORMAL)
    assert [each for each, _ in found[-1][1]] == [kind]
    assert "image 5" in found[-1][1][0][1]


@pytest.mark.parametrize(("kind", "fix"), data._FIXES.items())
def test_many_odd_images_are_a_warning_and_few_are_not(kind, fix):
    odd, normal = (9, [(kind, "x")]), (9, [])
    (few,) = judge_images("training", [odd] + [normal] * 99, 100, "failure")
    (many,) = judge_images("training", [odd] * 2 + [normal] * 98, 100, "failure")
    assert (few.verdict, many.verdict, many.fix) == ("ok", "warning", fix)
    assert f"1 {kind} (x)" in few.measured
    assert many.values == {"seen": 100, kind: 2}


@pytest.mark.parametrize("verdict", ["warning", "failure"])
def test_one_bad_image_has_the_verdict_of_the_recipe(verdict):
    files, images = judge_images("training", looks(GOOD, KINDS["bad"]), 2, verdict)
    assert (files.verdict, images.verdict) == (verdict, "ok")
    assert "2 of 2 images looked at, 1 cannot be used:\nimage 1 is no JPEG" in files.measured
    assert [finding.name for finding in judge_images("training", looks(GOOD), 1, verdict)] == ["training images"]


def test_a_sample_is_seeded_and_limited(monkeypatch):
    monkeypatch.setitem(data._SAMPLE, "training", 5)
    images = [encoded(noise(60, 40 + n)) for n in range(20)]
    sizes = [[size for size, _ in looks(*images, full=full)] for full in (False, False, True)]
    assert sizes[0] == sizes[1]
    assert (len(sizes[0]), len(sizes[2])) == (5, 20)
    assert not Counter(sizes[0]) - Counter(map(len, images))
    monkeypatch.setattr(data, "_SAMPLE_SECONDS", -1)
    assert looks(*images, full=False) == []
    assert len(looks(*images, full=True)) == 20


def both(train, val, num_bytes=0.0, full=False):
    return compare_splits(Local(*train), Local(*val), num_bytes, WORLD, full)


def test_a_file_in_both_splits_is_found_by_its_content():
    val = [b"val %d" % n for n in range(200)]
    train = [b"train %d" % n for n in range(50)]
    assert both(train, val).verdict == "ok"
    one = both([*train, val[7]], val)
    assert (one.verdict, one.values["shared"]) == ("warning", 1)
    assert "image 50 = image 7" in one.measured
    assert both([*train, *val[:2]], val).verdict == "warning"  # One percent.
    assert both([*train, *val[:3]], val).verdict == "failure"
    assert both([*train, *[val[0]] * 9], val).verdict == "warning"  # Nine copies of one image of validation.


def test_much_data_is_not_compared_without_the_option(monkeypatch):
    same = [b"x"] * 3
    for num_bytes in (5.1e9, math.inf):
        finding = both(same, same, num_bytes)
        assert finding.verdict == "ok"
        assert finding.measured.startswith("not checked")
        assert both(same, same, num_bytes, full=True).verdict == "failure"
    assert both(same, same, 4.9e9).verdict == "failure"
    monkeypatch.setattr(data, "_COMPARED_SECONDS", -1)
    assert both(same, same).measured.startswith("not checked")


def test_shards_of_a_server_are_not_downloaded():
    remote = Images(GOOD)
    remote.has_local_files, remote.read = False, Mock(side_effect=AssertionError)
    recipe = load_recipe("seresnext26").recipe
    found = list(data.check_data(recipe, dict.fromkeys(("training", "validation"), remote), WORLD, full=False))
    assert [finding.measured[:11] for finding in found[2:]] == ["not checked"] * 3
