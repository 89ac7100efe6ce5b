"""Text from strangers, made safe for a terminal: names of classes, tensors and files, and whole messages."""

from collections.abc import Sequence
from pathlib import Path

_LONGEST_MESSAGE = 100_000  # characters; nobody reads more


def printable(text: object, longest: int = 200) -> str:
    """Return text on one line for a message: at most `longest` characters, control characters as escapes."""
    shown = _escaped(str(text)[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def shorten(text: str) -> str:
    """Return text of a recipe or a command line for a message, at most 60 characters."""
    return printable(text, longest=60)


def shown_path(path: Path) -> str:
    """Return a whole path for a message: the end of a path tells files apart."""
    return printable(path, longest=5000)


def for_terminal(text: object) -> str:
    """Return a message for a terminal or a log, with its lines. Messages quote names from files of strangers."""
    shown = str(text)
    if len(shown) > _LONGEST_MESSAGE:
        shown = f"{shown[:_LONGEST_MESSAGE]}... (and {len(shown) - _LONGEST_MESSAGE:,} more characters)"
    return "\n".join(map(_escaped, shown.split("\n")))


def listed(lines: Sequence[str], most: int = 10) -> list[str]:
    """Return at most `most` lines, and a last line that counts the rest."""
    return [*lines[:most], f"... and {len(lines) - most:,} more"] if len(lines) > most else list(lines)


def _escaped(text: str) -> str:
    """Return text with escapes for unprintable characters, also for those that turn the writing direction."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def as_utf8(text: str) -> str:
    """Return a name with escapes for bytes that are no UTF-8: Linux allows such names, and text files do not."""
    return text.encode("utf-8", "backslashreplace").decode()
