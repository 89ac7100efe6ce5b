"""YAML for recipes: plain data, with the line of every value and without surprises.

YAML 1.1 and YAML 1.2 disagree in some points. The rules here:
- A number with an exponent is a number (`1e-4`, `1E5`). `010`, `0x10`, `1_000` and `12:30` are text, since the two
  versions read different numbers.
- yes, no, on and off are booleans, as in YAML 1.1. A date is text.
- A key is always text. Anchors, aliases and tags are refused.

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

from seresnext.errors import RecipeError, shorten

MAX_BYTES = 1_000_000
MAX_DEPTH = 10
MAX_VALUES = 1_000

_WORDS = {
    form: value
    for words, value in (("null", None), ("true yes on", True), ("false no off", False))
    for word in words.split()
    for form in (word, word.capitalize(), word.upper())
} | {"": None, "~": None}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")
_LIKE_A_NUMBER = re.compile(r"[0-9.][0-9._xobeEa-fA-F+-]*")  # or a date, to some reader


@dataclass(frozen=True)
class Node:
    """A value of a recipe: None, a bool, a number, text, a list of nodes or a dict of nodes.

    `origin` is the file and line, or `--set`. `written` is the spelling of a scalar, or words for a section or a list.
    """

    value: Any
    origin: str
    written: str = ""

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
            try:
                node = node.value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return node


def read_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar: None, a bool, a number or text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def write_scalar(value: Any) -> str:
    """Return a scalar as text that `read_scalar` and other readers of YAML read, in quotes if necessary."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN.fullmatch(value) and not _LIKE_A_NUMBER.fullmatch(value) and read_scalar(value) == value:
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).strip()


def write_value(value: Any) -> str:
    """Return plain data as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{write_scalar(key)}: {write_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(write_value, value)) + "]"
    return write_scalar(value)


def has_control(text: str) -> bool:
    """Return whether a text has a line break, a terminal escape or half of a surrogate pair."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


class _Builder:
    """Builder of nodes from PyYAML's events."""

    def __init__(self, loader: yaml.SafeLoader, origin_of: Callable[[int], str]) -> None:
        self._next = loader.get_event
        self._origin_of = origin_of
        self._values = 0

    def document(self) -> Node:
        """Return the root. The root of an empty text is None."""
        self._next()  # the stream begins
        if isinstance(self._next(), yaml.StreamEndEvent):
            return Node(None, self._origin_of(1))
        root = self._node(self._next(), 0)
        self._next()  # the document ends
        if not isinstance(more := self._next(), yaml.StreamEndEvent):
            raise self._refusal(more, "a second document begins here; a recipe is one document")
        return root

    def _where(self, event: yaml.Event) -> str:
        return self._origin_of(event.start_mark.line + 1)

    def _refusal(self, event: yaml.Event, problem: str) -> RecipeError:
        return RecipeError([f"{self._where(event)}: {problem}"])

    def _node(self, event: Any, depth: int) -> Node:
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            limits = f"more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH}"
            raise self._refusal(event, f"{limits}; this is not a recipe")
        if event.anchor is not None or event.tag is not None:
            raise self._refusal(event, "an anchor, an alias or a tag; write values alone, and share them by 'base:'")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(item := self._next(), yaml.SequenceEndEvent):
                items.append(self._node(item, depth + 1))
            return Node(items, self._where(event), f"a list of {len(items)}")
        if isinstance(event, yaml.MappingStartEvent):
            return Node(self._mapping(depth), self._where(event), "a section")
        if event.style is not None:
            return Node(event.value, self._where(event), repr(event.value))
        return Node(read_scalar(event.value), self._where(event), event.value)

    def _mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag or has_control(event.value):
                raise self._refusal(event, "a key must be text without control characters, anchor and tag")
            if first := entries.get(event.value):
                raise self._refusal(event, f"duplicate key {shorten(event.value)}, first written in {first.origin}")
            # The line of a value is the line of the key.
            entries[event.value] = replace(self._node(self._next(), depth + 1), origin=self._where(event))
        return entries


def read_yaml(text: str, origin_of: Callable[[int], str]) -> Node:
    """Read one document. `origin_of` names a line, such as `my.yaml:3`.

    Returns the root, with None for an empty text. Raises `RecipeError`, with the place, for no YAML.
    """
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise RecipeError([f"{origin_of(line)}: character {character} is not allowed; remove the character"]) from None
    try:
        return _Builder(loader, origin_of).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(filter(None, (error.context, error.problem)))
        fix = "check the quotes, the brackets and the indentation, which is by spaces"
        raise RecipeError([f"{origin_of(mark.line + 1 if mark else 1)}: no YAML: {problem}; {fix}"]) from None
    except (ValueError, OverflowError):  # PyYAML on "\UFFFFFFFF" and %YAML with too many digits
        raise RecipeError([f"{origin_of(loader.get_mark().line + 1)}: no YAML; check the text in quotes"]) from None


def read_value(text: str) -> Node:
    """Read the VALUE of `--set KEY=VALUE`: YAML in brackets, braces or quotes, or one scalar, where `#` is a letter."""
    text = text.strip()
    return read_yaml(text, lambda line: "--set") if text[0] in "[{'\"" else Node(read_scalar(text), "--set", text)
