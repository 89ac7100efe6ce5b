"""Durations: the two spellings, and the conversion to steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seresnext.durations import Duration


@pytest.mark.parametrize(
    ("text", "duration", "steps"),
    [
        ("90ep", Duration(90, "ep"), 90 * 7),
        ("2000st", Duration(2000, "st"), 2000),
        ("0ep", Duration(0, "ep"), 0),
        ("007st", Duration(7, "st"), 7),
    ],
)
def test_parse_and_steps(text: str, duration: Duration, steps: int) -> None:
    assert Duration.parse(text) == duration
    assert duration.steps(steps_per_epoch=7) == steps


@pytest.mark.parametrize(
    "text",
    ["", "ep", "90", "90 ep", "90eps", "90EP", "-1ep", "+1ep", "1.5ep", "1e3st", "90ep ", "\n90ep", "90ep\n", "1ep2st"],
)
def test_other_text_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match="write epochs as '90ep' or optimizer steps as '2000st'") as caught:
        Duration.parse(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 10**15), st.sampled_from(["ep", "st"]))
def test_text_round_trip(count: int, unit: str) -> None:
    text = f"{count}{unit}"
    assert str(Duration.parse(text)) == text


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_steps_of_epochs_and_of_steps(count: int, steps_per_epoch: int) -> None:
    assert Duration(count, "ep").steps(steps_per_epoch) == sum([steps_per_epoch]) * count
    assert Duration(count, "st").steps(steps_per_epoch) == count


def test_durations_are_values() -> None:
    assert len({Duration(1, "ep"), Duration(1, "ep"), Duration(1, "st")}) == 2
    with pytest.raises(AttributeError):
        Duration(1, "ep").count = 2  # type: ignore[misc]
