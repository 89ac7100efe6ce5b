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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from seresnext.printable import shorten

MAX_BYTES = 1_000_000
MAX_DEPTH = 10
MAX_VALUES = 1_000
MAX_DIGITS = 100

_WORDS = {
    form: value
    for words, value in (("null", None), ("true yes on", True), ("false no off", False))
    for word in words.split()
    for form in (word, word.capitalize(), word.upper())
} | {"": None, "~": None}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_REFUSED = [
    (re.compile(r"[-+]?0[0-9]+"), "begins with 0, which is octal to some readers; write the number without the 0"),
    (re.compile(r"[-+]?0[xob][0-9a-fA-F_]+"), "is not decimal; write a decimal number"),
    (re.compile(r"(?=.*_)[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"), "has underscores; write the digits alone"),
    (re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"), "is a base-60 number to some readers; write a plain number"),
]


@dataclass(frozen=True)
class Node:
    """A value of a recipe: None, a bool, a number, text, a list of nodes or a dict of nodes.

    `origin` is the file and line, or `--set`. `written` is the spelling of a scalar. `broken`: the problem is reported.
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

    def at(self, path: Sequence[str | int]) -> Node | None:
        """Return the node at a path of keys and of places in lists, or None."""
        node = self
        for step in path:
            if isinstance(node.value, dict) and step in node.value:
                node = node.value[str(step)]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                return None
        return node


class Unreadable(Exception):
    """A problem after which the rest of the text cannot be read."""


class _ValueLoader(yaml.SafeLoader):
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
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "")), None
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
        return "{" + ", ".join(f"{write_scalar(key)}: {write_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_value, value)) + "]"
    return write_scalar(value)


def has_control(text: str) -> bool:
    """Return whether a text has a line break, a terminal escape or half of a surrogate pair."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def decode_bytes(data: bytes, origin_of: Callable[[int], str]) -> str:
    """Return the text of a file. Raises `Unreadable` with a located message."""
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable(f"{origin_of(1)}: begins with a byte order mark; save the file as UTF-8 without one")
    if (place := data.find(0)) >= 0:
        where = origin_of(data.count(b"\n", 0, place) + 1)
        raise Unreadable(f"{where}: contains a NUL byte, so this is not a text file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = origin_of(data.count(b"\n", 0, error.start) + 1)
        raise Unreadable(f"{where}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


class _Builder:
    """Builder of nodes from PyYAML's events. Collects every problem after which the rest can still be read."""

    def __init__(self, loader: yaml.SafeLoader, origin_of: Callable[[int], str]) -> None:
        self._loader = loader
        self._origin_of = origin_of
        self._values = 0
        self.problems: list[str] = []

    def document(self, root_path: str) -> Node | None:
        """Return the root, or None for an empty text."""
        self._loader.get_event()  # the stream begins
        if isinstance(self._loader.get_event(), yaml.StreamEndEvent):
            return None
        root = self._node(self._loader.get_event(), root_path, 0)
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
        where = self._where(event)
        self._values += 1
        if self._values > MAX_VALUES:
            raise Unreadable(f"{where}: more than {MAX_VALUES} values; this is not a recipe")
        if depth > MAX_DEPTH:
            raise Unreadable(f"{where}: nested deeper than {MAX_DEPTH}; this is not a recipe")
        if isinstance(event, yaml.AliasEvent):
            message = f"alias *{shorten(event.anchor)}; aliases are not allowed, use 'base:' to share values"
            self._report(event, path, message)
            return Node(None, where, broken=True)
        broken = self._report_anchor_and_tag(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(item := self._loader.get_event(), yaml.SequenceEndEvent):
                items.append(self._node(item, path, depth + 1))
            return Node(items, where, broken=broken)
        if isinstance(event, yaml.MappingStartEvent):
            return Node(self._mapping(path, depth), where, broken=broken)
        value, problem = read_scalar(event.value) if event.style is None else (event.value, None)
        if isinstance(value, str) and has_control(value):
            problem = "text with a line break or another control character"
        if problem:
            self._report(event, path, problem)
        written = event.value if event.style is None else repr(event.value)
        return Node(value, where, written, broken or problem is not None)

    def _report_anchor_and_tag(self, event: Any, path: str) -> bool:
        if event.anchor is not None:
            message = f"anchor &{shorten(event.anchor)}; anchors are not allowed, use 'base:' to share values"
            self._report(event, path, message)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._report(event, path, f"tag {shorten(tag)}; tags are not allowed, write the value alone")
        return event.anchor is not None or event.tag is not None

    def _mapping(self, path: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := self._loader.get_event(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise Unreadable(f"{self._where(event)}: a key must be text")
            self._report_anchor_and_tag(event, path)
            key = event.value
            key_path = shorten(f"{path}.{key}" if path else key)
            node = self._node(self._loader.get_event(), key_path, depth + 1)
            if has_control(key):
                self._report(event, path, f"key {shorten(repr(key))} with a line break or another control character")
            elif key in entries:
                self._report(event, key_path, f"duplicate key, first written in {entries[key].origin}")
            elif key == "<<":
                self._report(event, path, "merge key '<<'; merge keys are not allowed, use 'base:' to share values")
            else:
                entries[key] = replace(node, origin=self._where(event))  # The line of a value is the line of the key.
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


def _read(
    text: str, origin_of: Callable[[int], str], root_path: str, loader_class: type[yaml.SafeLoader]
) -> tuple[Node | None, list[str]]:
    try:
        loader = loader_class(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise Unreadable(f"{origin_of(line)}: character {character} is not allowed") from None
    builder = _Builder(loader, origin_of)
    try:
        return builder.document(root_path), builder.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(f"{origin_of(mark.line + 1 if mark else 1)}: {_syntax(error)}") from None
    except (ValueError, OverflowError):  # PyYAML on "\UFFFFFFFF" and %YAML with too many digits
        raise Unreadable(f"{origin_of(loader.get_mark().line + 1)}: not readable as YAML") from None
    finally:
        loader.dispose()


def read_yaml(text: str, origin_of: Callable[[int], str]) -> tuple[Node | None, list[str]]:
    """Read one document. `origin_of` names a line, such as `my.yaml:3`.

    Returns the root (None for an empty text) and the problems. Raises `Unreadable`, with the place, for no YAML.
    """
    return _read(text, origin_of, "", yaml.SafeLoader)


def read_value(text: str, key: str) -> tuple[Node | None, list[str]]:
    """Read the VALUE of `--set KEY=VALUE` like `read_yaml`. ` #` does not begin a comment here."""
    return _read(text, lambda line: "--set", key, _ValueLoader)
