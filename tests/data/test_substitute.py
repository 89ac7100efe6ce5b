import numpy as np
import pytest

from seresnext.data.substitute import Substitution, Tally, candidates
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


def test_each_image_is_counted_and_told_once():
    said: list[str] = []
    tally = Tally(5, said.append)
    for _ in range(3):
        tally.note([Substitution(7, "train/a/7.jpg is empty", "train/a/2.jpg")])
        tally.note([Substitution(8, "train/b/8.jpg is empty", "train/b/3.jpg")])
    assert tally.count == 2
    assert said == [
        "warning: train/a/7.jpg is empty; train/a/2.jpg takes its place (1 of at most 5 so far)",
        "warning: train/b/8.jpg is empty; train/b/3.jpg takes its place (2 of at most 5 so far)",
    ]


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_beyond_the_limit_the_run_stops(limit: int):
    said: list[str] = []
    tally = Tally(limit, said.append)
    tally.note(Substitution(image, f"{image}.jpg is empty", "other.jpg") for image in range(limit))
    with pytest.raises(DataError, match=rf"more than data.max_bad_images \({limit}\).*{limit}.jpg is empty"):
        tally.note([Substitution(limit, f"{limit}.jpg is empty", "other.jpg")])
    assert len(said) == limit + 1
