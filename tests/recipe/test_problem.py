"""How problems are worded."""

from __future__ import annotations

import pytest

from seresnext.durations import Duration
from seresnext.recipe.problem import longer, one_of


@pytest.mark.parametrize(("words", "text"), [(["1"], "1"), (["1", "2"], "1 or 2"), (["1", "2", "3"], "1, 2 or 3")])
def test_a_choice_of_words(words: list[str], text: str) -> None:
    assert one_of(words) == text


def test_only_durations_of_one_unit_are_compared() -> None:
    assert longer(Duration(3, "ep"), Duration(2, "ep"))
    assert not longer(Duration(2, "ep"), Duration(2, "ep"))
    assert not longer(Duration(3, "ep"), Duration(2, "st"))
