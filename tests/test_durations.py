"""Durations: the two spellings, and the conversion to steps."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seresnext.durations import Duration


@pytest.mark.parametrize(
    "text",
    ["", "ep", "90", "90 ep", "90eps", "90EP", "-1ep", "+1ep", "1.5ep", "1e3st", "90ep ", "\n90ep", "90ep\n", "1ep2st"],
)
def test_other_text_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match="write epochs as '90ep' or optimizer steps as '2000st'") as caught:
        Duration.parse(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 10**15), st.sampled_from(["ep", "st"]), st.integers(1, 10**6))
def test_round_trip_and_steps(count: int, unit: Literal["ep", "st"], steps_per_epoch: int) -> None:
    duration = Duration.parse(f"{count}{unit}")
    assert duration == Duration(count, unit)
    assert str(duration) == f"{count}{unit}"
    assert duration.steps(steps_per_epoch) == count * (steps_per_epoch if unit == "ep" else 1)
