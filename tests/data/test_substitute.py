from typing import Any, ClassVar

import numpy as np
import pytest

from seresnext.data.substitute import BadImageCounter, ReplacedImage, candidates
from seresnext.distributed import World
from seresnext.errors import DataError

LABELS = np.arange(90) % 3


def test_candidates_are_the_others_of_the_class_each_once():
    for image in range(12):
        found = list(candidates(LABELS, 0, (0, image, 0)))
        assert len(found) == len(set(found)) >= 19
        assert image not in found
        assert {LABELS[other] for other in found} == {LABELS[image]}


def test_candidates_belong_to_the_address():
    first = [
        next(candidates(LABELS, seed, (epoch, 4, copy))) for seed in range(3) for epoch in range(5) for copy in (0, 1)
    ]
    again = [
        next(candidates(LABELS, seed, (epoch, 4, copy))) for seed in range(3) for epoch in range(5) for copy in (0, 1)
    ]
    assert first == again
    assert len(set(first)) > 10


def test_an_image_alone_in_its_class_has_no_candidates():
    assert list(candidates(np.array([0, 1, 1]), 0, (0, 0, 0))) == []
    assert list(candidates(np.array([0, 1, 1]), 0, (0, 1, 0))) == [2]


class Ranks(World):
    """Rank 0 of two ranks; the other rank shares `theirs`."""

    theirs: ClassVar[list[list[ReplacedImage]]] = []

    def gather(self, value: Any) -> list[Any]:
        return [value, [tuple(one) for one in self.theirs.pop(0)]] if isinstance(value, list) else [value]


def test_each_image_is_counted_and_reported_once():
    said: list[str] = []
    tally = BadImageCounter(5, World(), said.append)
    for _ in range(3):
        tally.note([ReplacedImage(7, "train/a/7.jpg is empty", "train/a/2.jpg")])
        tally.note([ReplacedImage(8, "train/b/8.jpg is empty", "train/b/3.jpg")])
        assert tally.pending in (2, 0)
        tally.share()
        assert (tally.count, tally.pending) == (2, 0)
    assert said == [
        "warning: train/a/7.jpg is empty; replaced by train/a/2.jpg (1 bad images, at most 5 allowed)",
        "warning: train/b/8.jpg is empty; replaced by train/b/3.jpg (2 bad images, at most 5 allowed)",
    ]


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_beyond_the_limit_the_run_stops(limit: int):
    said: list[str] = []
    tally = BadImageCounter(limit, World(), said.append)
    tally.note(ReplacedImage(image, f"{image}.jpg is empty", "other.jpg") for image in range(limit))
    tally.share()
    tally.note([ReplacedImage(limit, f"{limit}.jpg is empty", "other.jpg")])
    with pytest.raises(DataError, match=rf"more than data.max_bad_images \({limit}\).*{limit}.jpg is empty"):
        tally.share()
    assert len(said) == limit + 1


def test_bad_images_of_other_ranks_are_reported_and_counted():
    own, other, third = (ReplacedImage(number, f"{number}.jpg is empty", "other.jpg") for number in (4, 9, 11))
    said: list[str] = []
    tally = BadImageCounter(2, Ranks(), said.append)
    Ranks.theirs = [[own, other], [other], [third]]
    tally.note([own])
    tally.share()
    assert [text[:16] for text in said] == ["warning: 4.jpg i", "warning: 9.jpg i"]
    tally.note([other])  # In another epoch, this rank reads the image.
    assert tally.pending == 0
    tally.share()
    assert tally.count == len(said) == 2
    with pytest.raises(DataError, match=r"^3 images cannot be used, .*11.jpg is empty"):
        tally.share()
