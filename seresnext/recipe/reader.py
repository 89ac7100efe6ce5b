"""YAML for recipes: plain data, with the line of every value and without surprises.

YAML 1.1 and YAML 1.2 disagree in some points. The rules here:
- A number with an exponent is a number (`1e-4`, `1E5`). `010`, `0x10`, `1_000` and `12:30` are refused, since the two
  versions read different numbers.
- yes, no, on and off are booleans, as in YAML 1.1. A date is text.
- A key is always text. Anchors, aliases, merge keys and tags are refused.

The values are built from PyYAML's events, so no tag can construct an object. `MAX_BYTES`, `MAX_DEPTH` and `MAX_VALUES`
bound time and memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from seresnext.printable import shorten

MAX_BYTES = 1_000_000
MAX_DEPTH = 10
MAX_VALUES = 1_000
MAX_DIGITS = 100

_WORDS: dict[str, bool | None] = {
    form: value
    for word, value in [
        ("null", None),
        ("true", True),
        ("false", False),
        ("yes", True),
        ("no", False),
        ("on", True),
        ("off", False),
    ]
    for form in (word, word.capitalize(), word.upper())
} | {"": None, "~": None}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_REFUSED = [
    (
        re.compile(r"[-+]?0[0-9]+"),
        "begins with 0, which some YAML readers take for octal; write the number without the 0",
    ),
    (re.compile(r"[-+]?0[xob][0-9a-fA-F_]+"), "is not decimal; write a decimal number"),
    (re.compile(r"(?=.*_)[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"), "has underscores; write the digits alone"),
    (re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"), "is a base-60 number to some readers; write a plain number"),
]


@dataclass(frozen=True)
class Node:
    """A value of a recipe: None, a bool, a number, text, a list of nodes or a dict of nodes.

    `origin` is the file and line, or `--set`. `written` is the spelling of a scalar in the file. `broken` marks a value
    whose problem is already reported.
    """

    value: Any
    origin: str
    written: str = ""
    broken: bool = False

    def plain(self) -> Any:
        """Return the value without origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class Unreadable(Exception):
    """A problem after which the rest of the text cannot be read."""


class RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, used for its events only: PyYAML's rules for numbers and tags have no effect."""


class _ValueLoader(RecipeLoader):
    """A loader for one value of the command line: `#` does not begin a comment.

    The scanner calls `peek` for decisions and `prefix` for the text. `peek` returns a letter in place of `#`.
    """

    def peek(self, index: int = 0) -> str:
        character = super().peek(index)
        return "\N{FULLWIDTH NUMBER SIGN}" if character == "#" else character


def read_scalar(text: str) -> tuple[Any, str | None]:
    """Return the value of an unquoted scalar, and the problem with the scalar or None."""
    if text in _WORDS:
        return _WORDS[text], None
    for pattern, problem in _REFUSED:
        if pattern.fullmatch(text):
            return text, f"{shorten(text)} {problem} (or in quotes, if this is text)"
    if _INT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            return text, f"{shorten(text)} has {len(text)} digits"
        return int(text), None
    if _FLOAT.fullmatch(text):
        return float(text), None
    if match := _NOT_FINITE.fullmatch(text):
        return float(match[1] + "inf") if match[2] else float("nan"), None
    return text, None


def write_scalar(value: Any) -> str:
    """Return a scalar as text that `read_scalar` reads, in quotes if necessary."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    if re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*", value) and read_scalar(value) == (value, None):
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).strip()


def write_value(value: Any) -> str:
    """Return plain data as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {write_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_value, value)) + "]"
    return write_scalar(value)


def _has_control(text: str) -> bool:
    """Return whether a text has a line break, a terminal escape or half of a surrogate pair."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def decode_bytes(data: bytes) -> str:
    """Return the text of a file. Raises `Unreadable` with `LINE: PROBLEM`."""
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("1: begins with a byte order mark; save the file as UTF-8 without one")
    if b"\0" in data:
        raise Unreadable(f"{data[: data.index(0)].count(10) + 1}: contains a NUL byte, so this is not a text file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Unreadable(f"{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


class _Builder:
    """Builder of nodes from events. Collects every problem after which the rest can still be read."""

    def __init__(self, text: str, origin_of: Callable[[int], str], root_path: str, loader: type[RecipeLoader]) -> None:
        self._loader_class = loader
        self._root_path = root_path
        self._origin_of = origin_of
        self._text = text
        self._values = 0
        self.problems: list[str] = []

    def build(self) -> Node | None:
        """Return the root, or None for an empty text. Raises `Unreadable` if the text is not YAML."""
        try:
            self._loader = self._loader_class(self._text)
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            character = f"U+{ord(self._text[error.position]):04X}"
            raise Unreadable(f"{self._origin_of(line)}: character {character} is not allowed") from None
        try:
            return self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = self._origin_of(mark.line + 1 if mark else 1)
            raise Unreadable(f"{where}: {_syntax(error)}") from None
        except (ValueError, OverflowError):  # PyYAML on "\UFFFFFFFF" and %YAML with too many digits
            where = self._origin_of(self._loader.get_mark().line + 1)
            raise Unreadable(f"{where}: not readable as YAML") from None
        finally:
            self._loader.dispose()

    def _document(self) -> Node | None:
        self._loader.get_event()  # the stream begins
        if isinstance(self._loader.get_event(), yaml.StreamEndEvent):
            return None
        root = self._node(self._loader.get_event(), self._root_path, 0)
        self._loader.get_event()  # the document ends
        more = self._loader.get_event()
        if not isinstance(more, yaml.StreamEndEvent):
            raise Unreadable(f"{self._where(more)}: a second document begins here; a recipe is one document")
        return root

    def _where(self, event: yaml.Event) -> str:
        return self._origin_of(event.start_mark.line + 1)

    def _report(self, event: yaml.Event, path: str, message: str) -> None:
        self.problems.append(f"{self._where(event)}: {path}{': ' if path else ''}{message}")

    def _node(self, event: Any, path: str, depth: int) -> Node:
        self._values += 1
        if self._values > MAX_VALUES:
            raise Unreadable(f"{self._where(event)}: more than {MAX_VALUES} values; this is not a recipe")
        if depth > MAX_DEPTH:
            raise Unreadable(f"{self._where(event)}: nested deeper than {MAX_DEPTH}; this is not a recipe")
        where = self._where(event)
        if isinstance(event, yaml.AliasEvent):
            self._report(
                event, path, f"alias *{shorten(event.anchor)}; aliases are not allowed, use 'base:' to share values"
            )
            return Node(None, where, broken=True)
        broken = self._report_anchor_and_tag(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(item := self._loader.get_event(), yaml.SequenceEndEvent):
                items.append(self._node(item, path, depth + 1))
            return Node(items, where, broken=broken)
        if isinstance(event, yaml.MappingStartEvent):
            return Node(self._mapping(path, depth), where, broken=broken)
        return self._scalar(event, path, broken)

    def _report_anchor_and_tag(self, event: Any, path: str) -> bool:
        if event.anchor is not None:
            message = f"anchor &{shorten(event.anchor)}; anchors are not allowed, use 'base:' to share values"
            self._report(event, path, message)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._report(event, path, f"tag {shorten(tag)}; tags are not allowed, write the value alone")
        return event.anchor is not None or event.tag is not None

    def _scalar(self, event: Any, path: str, broken: bool) -> Node:
        value, problem = read_scalar(event.value) if event.style is None else (event.value, None)
        if isinstance(value, str) and _has_control(value):
            problem = "text with a line break or another control character"
        if problem:
            self._report(event, path, problem)
        written = event.value if event.style is None else repr(event.value)
        return Node(value, self._where(event), written, broken or problem is not None)

    def _mapping(self, path: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        first: dict[str, int] = {}
        while not isinstance(event := self._loader.get_event(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise Unreadable(f"{self._where(event)}: a key must be text")
            self._report_anchor_and_tag(event, path)
            key = event.value
            key_path = shorten(f"{path}.{key}" if path else key)
            node = self._node(self._loader.get_event(), key_path, depth + 1)
            if _has_control(key):
                self._report(event, path, f"key {shorten(repr(key))} with a line break or another control character")
            elif key in entries:
                self._report(event, key_path, f"duplicate key, first written in line {first[key]}")
            elif key == "<<":
                self._report(event, path, "merge key '<<'; merge keys are not allowed, use 'base:' to share values")
            else:
                # The line of a value is the line of the key.
                entries[key] = Node(node.value, self._where(event), node.written, node.broken)
                first[key] = event.start_mark.line + 1
        return entries


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not readable as YAML"
    if "'\\t'" in problem:
        return "a tab; indent and separate with spaces"
    if problem == "mapping values are not allowed here":
        return "unexpected ':'; check the indentation, and put text that contains ': ' in quotes"
    if problem.startswith("expected '<document start>'"):
        return "text after the end of the value; put all of the text in quotes"
    return f"not readable as YAML: {problem}" + (f" ({error.context})" if error.context else "")


def read_yaml(text: str, origin_of: Callable[[int], str]) -> tuple[Node | None, list[str]]:
    """Read one document. `origin_of` names a line, such as `my.yaml:3`.

    Returns the root (None for an empty text) and the problems found. Raises `Unreadable` with a located message if the
    text is not YAML.
    """
    builder = _Builder(text, origin_of, "", RecipeLoader)
    return builder.build(), builder.problems


def read_value(text: str, key: str) -> tuple[Node | None, list[str]]:
    """Read the VALUE of `--set KEY=VALUE` like `read_yaml`. ` #` does not begin a comment here."""
    builder = _Builder(text, lambda line: "--set", key, _ValueLoader)
    return builder.build(), builder.problems
