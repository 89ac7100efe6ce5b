"""Text from strangers for a terminal."""

import pytest

from seresnext.errors import for_terminal, listed, printable, shorten


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\r", "\x00", "\u202e", "\u2028", "\udc80", "\x9b"])
def test_control_characters(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


def test_length_is_capped() -> None:
    assert printable("layer1.0.größe 日本") == "layer1.0.größe 日本"
    assert printable("\x00" * 10**7) == printable("\x00" * 200)
    for cap, longest in ((printable, 200), (shorten, 60)):
        assert cap("a" * longest) == "a" * longest
        assert cap("a" * (longest + 1)) == "a" * (longest - 3) + "..."


def test_listed() -> None:
    assert listed(["a", "b"], most=2) == ["a", "b"]
    assert listed(["a"] * 3000, most=1) == ["a", "... and 2,999 more"]


def test_a_message_keeps_its_lines_and_is_cut_off() -> None:
    assert for_terminal("a\nb\x1b[2J\r") == "a\nb\\x1b[2J\\r"
    assert len(for_terminal("x" * 10**7)) < 200_000
