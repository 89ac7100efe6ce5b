"""Verdicts, the table and the exit code."""

import pytest

from seresnext.check.findings import SECTIONS, CheckFailed, judge, table


@pytest.mark.parametrize(("section", "code"), [("data", 3), ("recipe", 2), ("devices", 2), ("disk", 1), ("run", 1)])
def test_the_first_finding_gives_the_exit_code(section, code):
    others = [judge(name, "later", "x", "y", "failure") for name in SECTIONS]
    assert CheckFailed([judge(section, "first", "x", "y", "failure"), *others]).exit_code == code


def test_the_table_has_a_hundred_columns_and_no_control_characters():
    name = "a" * 120 + "\x1b[31m.jpg"
    finding = judge("data", "images", "some words " * 30 + f"\nsecond {name}", "words " * 40, source="words " * 40)
    lines = table("data", [finding]).split("\n")
    assert lines[0] == "data"
    assert lines[1].startswith("  warning  images")
    assert max(len(line) for line in lines if "aaa" not in line) <= 100
    assert any(line.strip().startswith("second") for line in lines)
    assert any(line.strip() == "a" * 120 + "\\x1b[31m.jpg" for line in lines)
    assert sum(line.strip().startswith(("fix: ", "source: ")) for line in lines) == 2
