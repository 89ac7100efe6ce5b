from typing import Any, ClassVar

import numpy as np
import pytest

from seresnext.data.substitute import BadImageCounter, ReplacedImage, candidates
from seresnext.distributed import World
from seresnext.errors import DataError

LABELS = np.arange(90) % 3


def test_candidates_are_the_others_of_the_class_each_once():
    for image in range(12):
        found = candidates(LABELS, 0, (0, image, 0))
        assert len(found) == len(set(found)) >= 19
        assert image not in found
        assert {LABELS[other] for other in found} == {LABELS[image]}
    assert candidates(np.array([0, 1, 1]), 0, (0, 0, 0)) == []
    assert candidates(np.array([0, 1, 1]), 0, (0, 1, 0)) == [2]


def test_candidates_belong_to_the_address():
    places = [(seed, epoch, copy) for seed in range(3) for epoch in range(5) for copy in (0, 1)]
    first, again = ([candidates(LABELS, s, (epoch, 4, copy))[0] for s, epoch, copy in places] for _ in range(2))
    assert first == again
    assert len(set(first)) > 10


class Ranks(World):
    """Rank 0 of two ranks; the other rank shares `theirs`."""

    theirs: ClassVar[list[list[ReplacedImage]]] = []

    def gather(self, value: Any) -> list[Any]:
        return [value, [tuple(one) for one in self.theirs.pop(0)]] if isinstance(value, list) else [value]


def bad(image: int) -> ReplacedImage:
    return ReplacedImage(image, f"{image}.jpg is empty", "other.jpg")


def test_each_image_is_counted_and_reported_once():
    printed: list[str] = []
    counter = BadImageCounter(5, World(), printed.append)
    for number in range(3):
        counter.note([bad(7)])
        counter.note([bad(8)])
        assert counter.pending == (0 if number else 2)
        counter.share()
        assert counter.pending == 0
    assert printed == [
        "warning: 7.jpg is empty; replaced by other.jpg (1 bad images of at most 5)",
        "warning: 8.jpg is empty; replaced by other.jpg (2 bad images of at most 5)",
    ]


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_beyond_the_limit_the_run_stops(limit: int):
    printed: list[str] = []
    counter = BadImageCounter(limit, World(), printed.append)
    counter.note(map(bad, range(limit)))
    counter.share()
    counter.note([bad(limit)])
    with pytest.raises(DataError, match=rf"more than data.max_bad_images \({limit}\).*{limit}.jpg is empty"):
        counter.share()
    assert len(printed) == limit + 1


def test_bad_images_of_other_ranks_are_reported_and_counted():
    printed: list[str] = []
    counter = BadImageCounter(2, Ranks(), printed.append)
    Ranks.theirs = [[bad(4), bad(9)], [bad(9)], [bad(11)]]
    counter.note([bad(4)])
    counter.share()
    assert [text[:16] for text in printed] == ["warning: 4.jpg i", "warning: 9.jpg i"]
    counter.note([bad(9)])  # In another epoch, this rank reads the image.
    assert counter.pending == 0
    counter.share()
    assert len(printed) == 2
    with pytest.raises(DataError, match=r"^3 images cannot be used, .*11.jpg is empty"):
        counter.share()
