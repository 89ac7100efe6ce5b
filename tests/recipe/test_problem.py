"""How problems are worded."""

from __future__ import annotations

import pytest

from seresnext.recipe.problem import one_of


@pytest.mark.parametrize(("words", "text"), [(["1"], "1"), (["1", "2"], "1 or 2"), (["1", "2", "3"], "1, 2 or 3")])
def test_a_choice_of_words(words: list[str], text: str) -> None:
    assert one_of(words) == text
