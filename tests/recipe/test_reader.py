"""Scalars of recipes compared with PyYAML and float(), and the time for hostile texts."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from seresnext.errors import RecipeError
from seresnext.recipe.reader import MAX_BYTES, read_scalar, read_value, read_yaml, write_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1e4", 1e4), ("1E5", 1e5), ("+1.5e+3", 1500.0), ("-.5", -0.5), ("1.", 1.0), ("01.5", 1.5),
        ("0", 0), ("-7", -7), ("+5", 5), ("true", True), ("Off", False), ("NULL", None), ("~", None), ("", None),
        ("nan", "nan"), ("inf", "inf"), ("e5", "e5"), ("1e", "1e"), ("100ep", "100ep"), ("y", "y"), ("=", "="),
        ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"), ("-", "-"), (".", "."), ("010", "010"), ("0x10", "0x10"),
        ("1_0", "1_0"), ("12:30", "12:30"), ("1" * 100, int("1" * 100)), ("1" * 101, "1" * 101),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    found = read_scalar(text)
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float_round_trip(value: float) -> None:
    assert read_scalar(write_scalar(value)) == value


@given(st.integers(0, 10**6), st.integers(-300, 300), st.sampled_from("eE"), st.sampled_from(["", "+"]))
def test_every_exponent_form_is_a_float(digits: int, exponent: int, letter: str, sign: str) -> None:
    text = f"{digits}{letter}{sign if exponent >= 0 else ''}{exponent}"
    value = read_scalar(text)
    assert type(value) is float
    assert value == float(text)


NUMBERS = st.from_regex(r"[0-9._xobe+-]+", fullmatch=True)  # to some readers of YAML


@given(st.text().filter(lambda text: text.isprintable()) | NUMBERS)
def test_text_round_trip(text: str) -> None:
    assert read_value(write_scalar(text)).plain() == text
    for document, value in ((f"key: {write_scalar(text)}\n", text), (f"key: [{write_scalar(text)}]\n", [text])):
        assert read_yaml(document, str).plain() == {"key": value}
        assert yaml.safe_load(document) == {"key": value}  # Other readers agree.


@given(st.lists(st.from_regex(r"[A-Za-z/#][A-Za-z0-9/._#-]*", fullmatch=True), min_size=1))
def test_number_sign_on_the_command_line_is_no_comment(words: list[str]) -> None:
    text = " #".join(words)
    assert read_value(text).plain() == text
    if " #" in text:  # In a file, ` #` begins a comment for every YAML reader.
        assert read_yaml(text, str).plain() == yaml.safe_load(text) != text


def test_line_of_a_value_is_the_line_of_the_key() -> None:
    root = read_yaml("# 1\na:\n  b: 1\n\n  c:\n    - 2\n  d: {e:\n   4}\n", "line {}".format)
    section = root.value["a"]
    assert section.origin == "line 2"
    assert {key: node.origin for key, node in section.value.items()} == {"b": "line 3", "c": "line 5", "d": "line 7"}
    assert section.value["d"].value["e"].origin == "line 7"


# Texts of the maximum length. The time of regular expressions and of PyYAML's scanner must not grow quadratically.
LONG = {
    "comment": "#" * MAX_BYTES,
    "word": "a: " + "x" * MAX_BYTES,
    "lines": "a: " + "x\n " * (MAX_BYTES // 3),
    "digits": "a: " + "9" * MAX_BYTES,
    "digits and dots": "a: " + "9." * (MAX_BYTES // 2),
    "exponents": "a: " + "1e" * (MAX_BYTES // 2),
    "brackets": "[" * MAX_BYTES,
    "brackets and braces": "{a: [" * (MAX_BYTES // 5),
    "colons": ":" * MAX_BYTES,
    "tag": "a: !" + "x" * MAX_BYTES + " 1",
    "directives": "%A b\n" * (MAX_BYTES // 5),
    "version": "%YAML " + "1" * MAX_BYTES + ".1\n---\na: 1",
    "quoted": "a: '" + "x\n " * (MAX_BYTES // 3) + "'",
}


@pytest.mark.parametrize("case", LONG)
@pytest.mark.full
def test_long_text_takes_seconds_at_most(case: str) -> None:
    start = time.process_time()
    problems = []
    try:
        read_yaml(LONG[case], str)
    except RecipeError as error:
        problems = error.problems
    assert time.process_time() - start < 10
    assert all(len(problem) < 300 for problem in problems)
