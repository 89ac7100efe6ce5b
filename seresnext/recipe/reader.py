"""YAML as recipes use it: plain data with the line of every value, and nothing that surprises.

The rules, where YAML 1.1 and 1.2 or common sense differ:
- a number with an exponent is a number (`1e-4`, `1E5`); `010`, `0x10`, `1_000` and `12:30` are refused, since readers
  disagree about them;
- yes, no, on and off are booleans, as in YAML 1.1; a date is text;
- a key is text, whatever it looks like; anchors, aliases, merge keys and tags are refused.

Values are read from PyYAML's events, so nothing is ever constructed from a tag, and time and memory are bounded by the
size of the file and by `MAX_DEPTH` and `MAX_VALUES`.
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
    (re.compile(r"[-+]?0[0-9]+"), "begins with 0, which some readers take for octal; write it without the 0"),
    (re.compile(r"[-+]?0[xob][0-9a-fA-F_]+"), "is not decimal; write it in decimal"),
    (re.compile(r"(?=.*_)[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"), "has underscores; write the digits alone"),
    (re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"), "is a base-60 number to some readers; write a plain number"),
]


@dataclass(frozen=True)
class Node:
    """A value of a recipe: None, a bool, a number, text, a list of nodes or a dict of nodes.

    `origin` is where it was written, `written` a scalar as its author spelled it; `broken` marks a value that was
    already complained about.
    """

    value: Any
    origin: str
    written: str = ""
    broken: bool = False

    def plain(self) -> Any:
        """The value without its origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class Unreadable(Exception):
    """The rest of the text cannot be read."""


class RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, used for its events only. Its own ideas of numbers and tags are never asked."""


class _ValueLoader(RecipeLoader):
    """A loader for one value of the command line, where `#` begins no comment.

    The scanner decides by `peek` and copies text by `prefix`: `peek` gives a letter for `#`, and `prefix` the `#`.
    """

    def peek(self, index: int = 0) -> str:
        character = super().peek(index)
        return "\N{FULLWIDTH NUMBER SIGN}" if character == "#" else character


def read_scalar(text: str) -> tuple[Any, str | None]:
    """The value of an unquoted scalar, and what is wrong with it."""
    if text in _WORDS:
        return _WORDS[text], None
    for pattern, complaint in _REFUSED:
        if pattern.fullmatch(text):
            return text, f"{shorten(text)} {complaint} (or in quotes, if it is text)"
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
    """A scalar as `read_scalar` reads it, or in quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    if re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*", value) and read_scalar(value) == (value, None):
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).strip()


def _has_control(text: str) -> bool:
    """Line breaks, escapes for terminals, halves of surrogate pairs: nothing that a name or a path should hold."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def decode_bytes(data: bytes) -> str:
    """The text of a file. Raises `Unreadable` with `LINE: what is wrong`."""
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("1: begins with a byte order mark; save the file as UTF-8 without one")
    if b"\0" in data:
        raise Unreadable(f"{data[: data.index(0)].count(10) + 1}: contains a NUL byte, so it is not a text file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Unreadable(f"{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


class _Builder:
    """Builds nodes from events, noting every problem that leaves the rest readable."""

    def __init__(self, text: str, origin_of: Callable[[int], str], root_path: str, loader: type[RecipeLoader]) -> None:
        self._loader_class = loader
        self._root_path = root_path
        self._origin_of = origin_of
        self._text = text
        self._values = 0
        self.problems: list[str] = []

    def build(self) -> Node | None:
        """The root, or None for an empty text. Raises `Unreadable` where the text is not YAML."""
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

    def _complain(self, event: yaml.Event, path: str, message: str) -> None:
        self.problems.append(f"{self._where(event)}: {path}{': ' if path else ''}{message}")

    def _node(self, event: Any, path: str, depth: int) -> Node:
        self._values += 1
        if self._values > MAX_VALUES:
            raise Unreadable(f"{self._where(event)}: more than {MAX_VALUES} values; this is not a recipe")
        if depth > MAX_DEPTH:
            raise Unreadable(f"{self._where(event)}: nested deeper than {MAX_DEPTH}; this is not a recipe")
        where = self._where(event)
        if isinstance(event, yaml.AliasEvent):
            self._complain(
                event, path, f"alias *{shorten(event.anchor)}; recipes have none, use 'base:' to share values"
            )
            return Node(None, where, broken=True)
        broken = self._refuse_decorations(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(item := self._loader.get_event(), yaml.SequenceEndEvent):
                items.append(self._node(item, path, depth + 1))
            return Node(items, where, broken=broken)
        if isinstance(event, yaml.MappingStartEvent):
            return Node(self._mapping(path, depth), where, broken=broken)
        return self._scalar(event, path, broken)

    def _refuse_decorations(self, event: Any, path: str) -> bool:
        if event.anchor is not None:
            message = f"anchor &{shorten(event.anchor)}; recipes have none, use 'base:' to share values"
            self._complain(event, path, message)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._complain(event, path, f"tag {shorten(tag)}; recipes have none, write the value alone")
        return event.anchor is not None or event.tag is not None

    def _scalar(self, event: Any, path: str, broken: bool) -> Node:
        value, complaint = read_scalar(event.value) if event.style is None else (event.value, None)
        if isinstance(value, str) and _has_control(value):
            complaint = "text with a line break or another control character"
        if complaint:
            self._complain(event, path, complaint)
        written = event.value if event.style is None else repr(event.value)
        return Node(value, self._where(event), written, broken or complaint is not None)

    def _mapping(self, path: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        first: dict[str, int] = {}
        while not isinstance(event := self._loader.get_event(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise Unreadable(f"{self._where(event)}: a key must be text")
            self._refuse_decorations(event, path)
            key = event.value
            key_path = shorten(f"{path}.{key}" if path else key)
            node = self._node(self._loader.get_event(), key_path, depth + 1)
            if _has_control(key):
                self._complain(event, path, f"key {shorten(repr(key))} with a line break or another control character")
            elif key in entries:
                self._complain(event, key_path, f"duplicate key, first written in line {first[key]}")
            elif key == "<<":
                self._complain(event, path, "merge key '<<'; recipes have none, use 'base:' to share values")
            else:
                # A value is where its key is: that is the line to go to, however the value is laid out.
                entries[key] = Node(node.value, self._where(event), node.written, node.broken)
                first[key] = event.start_mark.line + 1
        return entries


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not readable as YAML"
    if "'\\t'" in problem:
        return "a tab; indent and separate with spaces"
    if problem == "mapping values are not allowed here":
        return "a ':' that cannot be here; check the indentation, and put text that contains ': ' in quotes"
    if problem.startswith("expected '<document start>'"):
        return "text after the end of the value; put all of the text in quotes"
    return f"not readable as YAML: {problem}" + (f" ({error.context})" if error.context else "")


def read_yaml(text: str, origin_of: Callable[[int], str]) -> tuple[Node | None, list[str]]:
    """Read one document. `origin_of` names a line.

    Returns the root (None for an empty text) and the problems found. Raises `Unreadable` with one located message for
    text that is no YAML.
    """
    builder = _Builder(text, origin_of, "", RecipeLoader)
    return builder.build(), builder.problems


def read_value(text: str, key: str) -> tuple[Node | None, list[str]]:
    """Read the VALUE of `--set KEY=VALUE`, as `read_yaml` does, except that ` #` begins no comment."""
    builder = _Builder(text, lambda line: "--set", key, _ValueLoader)
    return builder.build(), builder.problems
