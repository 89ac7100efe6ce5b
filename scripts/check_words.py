"""Check that comments, docstrings, messages and documents are written in plain words. Part of the lint step.

    python scripts/check_words.py [PATH ...]      # by default all Python files and documents of the project

Counts, per 1,000 words of a tree, the constructions that make technical English hard to read for a reader with another
first language. Prints the rates, and the lines with the most hits of a tree above a limit. Exits with 1 then.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import _python  # noqa: F401

from seresnext.process.exit import run_script

ROOT = Path(__file__).parents[1]
TREES = ("seresnext", "scripts", "tests", "docs", "README.md", "CONTRIBUTING.md")


class Rule(NamedTuple):
    """A pattern, the hits per 1,000 words that are allowed, and the advice."""

    pattern: re.Pattern[str]
    limit: float
    advice: str


RULES = {
    "clauses with what": Rule(
        re.compile(r"\b(what|whatever|whichever|whoever|whose)\b", re.I), 1.5, "name the thing: `the file that`"
    ),
    "pronouns": Rule(
        re.compile(r"\b(its?|itself|they|them|theirs?|those|that of|the ones?|another's)\b", re.I),
        12,
        "repeat the noun",
    ),
    "old words": Rule(
        re.compile(
            r"\b(anew|afresh|heed(s|ed)?|in vain|for want of|besides?|hitherto|thereof|whereof|nor|lest|"
            r"(go|goes|going|went) on|(is|are) (told|said)|says? so|told of)\b",
            re.I,
        ),
        0.3,
        "use the glossary of CONTRIBUTING.md: resume, continue, report, next to, again",
    ),
    "inverted sentences": Rule(
        re.compile(
            r"(?:^|(?<=[.!?:;] ))(Not|Else|Nor|Of|Where|Whether|So|Neither|Only|Also|Or|And|Hence|Without|Until)\b"
        ),
        3,
        "begin with the subject",
    ),
}
# Functions whose text a user reads.
_PRINTERS = frozenset(("print", "warn", "warning", "info", "error", "line", "log", "report", "Problem"))
_SHOWN = 10


class Line(NamedTuple):
    """A line of text, without code."""

    place: str
    text: str


def lines_of(path: Path) -> Iterator[Line]:
    """Yield the comments, docstrings and messages of a Python file, or the prose of a Markdown file."""
    source = path.read_text(encoding="utf-8")
    found = _code_texts(source) if path.suffix == ".py" else _document_texts(source)
    yield from (Line(f"{path}:{number}", text) for number, text in found)


def _code_texts(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#! ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node):
                text = node.body[0]
                assert isinstance(text, ast.Expr)
                assert isinstance(text.value, ast.Constant)
                yield from enumerate(str(text.value.value).splitlines(), text.lineno)
        elif isinstance(node, ast.Raise) and node.exc:
            yield from _texts(node.exc)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if name in _PRINTERS:
                yield from (text for argument in node.args for text in _texts(argument))


def _texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.lineno, part.value


def _document_texts(source: str) -> Iterator[tuple[int, str]]:
    is_code = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", " x ", line)


def problems_of(lines: list[Line]) -> list[str]:
    """Return a line for each rule that is broken, with the worst places."""
    words = sum(len(re.findall(r"[A-Za-z][A-Za-z'-]*", line.text)) for line in lines)
    found = []
    for name, rule in RULES.items():
        hits = Counter({line: count for line in lines if (count := len(rule.pattern.findall(line.text)))})
        rate = 1000 * hits.total() / max(words, 1)
        if rate > rule.limit:
            places = "".join(f"\n    {line.place}: {line.text.strip()[:100]}" for line, _ in hits.most_common(_SHOWN))
            found.append(f"{name}: {rate:.1f} per 1,000 words, at most {rule.limit:g}; {rule.advice}{places}")
    return found


def main() -> None:
    """Check each tree."""
    trees = [Path(word) for word in sys.argv[1:]] or [ROOT / name for name in TREES]
    has_problems = False
    for tree in trees:
        files = [tree] if tree.is_file() else sorted([*tree.rglob("*.py"), *tree.rglob("*.md")])
        problems = problems_of([line for file in files for line in lines_of(file)])
        for problem in problems:
            print(f"{tree.name}: {problem}")
        has_problems = has_problems or bool(problems)
    print("rewrite the lines above" if has_problems else "the words are plain")
    if has_problems:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
