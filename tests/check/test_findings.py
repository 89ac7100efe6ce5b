"""The table."""

from seresnext.check.findings import judge, table


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
