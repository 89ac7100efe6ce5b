"""The check of words finds the constructions that it is for, and no code."""

from pathlib import Path

import check_words
import pytest

PLAIN = "Return the learning rate of a step. The schedule is a function of the step. " * 10


def problems(tmp_path: Path, text: str, name: str = "file.md") -> list[str]:
    path = tmp_path / name
    path.write_text(text)
    return check_words.problems_of(list(check_words.lines_of(path)))


@pytest.mark.parametrize(("sentence", "rule"), [
    ("What is saved is what was trained.", "clauses with what"),
    ("It is theirs, and they have it, as those do.", "pronouns"),
    ("The run goes on, and waits in vain.", "old words"),
    ("Not for the compiler. Of these, one stays. So is this.", "inverted sentences"),
])  # fmt: skip
def test_each_rule_finds_its_construction(tmp_path, sentence, rule):
    assert problems(tmp_path, PLAIN) == []
    (problem,) = [line for line in problems(tmp_path, PLAIN + sentence) if line.startswith(rule)]
    assert "file.md:1" in problem


def test_code_is_not_read(tmp_path):
    assert problems(tmp_path, f"{PLAIN}\n```\nwhat it is, they say\n```\nThe option `--what` is one.\n") == []
    assert problems(tmp_path, 'what = it = "what it is, they say"\n', "file.py") == []


@pytest.mark.parametrize(
    "line",
    ["x = 1  # What it is", 'def f():\n    """What it is."""', 'raise V(f"{1}: what it is")', 'print("what it is")'],
)
def test_comments_docstrings_and_messages_are_read(tmp_path, line):
    assert problems(tmp_path, line + "\n", "file.py")
