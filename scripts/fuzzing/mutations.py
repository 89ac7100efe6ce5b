"""Damage to bytes, to JSON values and to lines of text, drawn from a generator of random numbers."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any

# Texts with a meaning for a terminal, a file system, or a reader of names and numbers.
TEXTS = (
    "", "\0", "\x1b[2J", "\x1b]0;title\a", "\u202egnp.exe", "\ud800", "\udcff", "a\nb", "\r", "ä", "a\u0308", "١٢٣",
    "..", "../../x", "/etc/passwd", "~", "%s%n", "{0}", "nan", "1e999", "-1", "null", "x" * 300, "x" * 70_000,
)  # fmt: skip
_VALUES = (
    None, True, False, 0, 1, -1, 0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), [], {}, [[]], {"": 0},
)  # fmt: skip
# Texts in the place of a JSON value. No Python value is written as one of them.
_RAW = (
    "[" * 100_000, "[" * 900 + "]" * 900, "[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, "1" * 400,
    "1" * 5000, "-" + "9" * 400, "1e400", "NaN", "-Infinity", '"\\ud800"', '"open', "1, 1", '1, "a": 2', "",
)  # fmt: skip
_CHANGES = (
    "flip", "flip", "byte", "garbage", "insert", "same", "cut", "remove", "repeat", "splice", "number", "text",
)  # fmt: skip


def boundary(draws: Random) -> int:
    """Draw a whole number at a limit of a size, sign or type."""
    number = (1 << draws.choice((0, 1, 4, 7, 8, 15, 16, 31, 32, 53, 63, 64))) + draws.choice((-1, 0, 1))
    return number if draws.random() < 0.8 else -number


def strange_text(draws: Random) -> str:
    """Draw a text that a reader may fail on."""
    return draws.choice(TEXTS)


def strange_bytes(draws: Random) -> bytes:
    """Draw bytes that a reader may fail on."""
    return strange_text(draws).encode("utf-8", "surrogatepass")


def strange_value(draws: Random) -> Any:
    """Draw a JSON value that a reader may fail on."""
    kind = draws.random()
    if kind < 0.4:
        return copy.deepcopy(draws.choice(_VALUES))
    if kind < 0.7:
        return draws.choice((boundary(draws), 10**30, 10**400))
    return strange_text(draws)


def mutate_bytes(draws: Random, data: bytes, other: bytes = b"") -> bytes:
    """Damage bytes in one to four places. A part may come from `other`."""
    for _ in range(draws.choice((1, 1, 1, 2, 4))):
        data = _mutate_once(draws, data, other)
    return data


def _mutate_once(draws: Random, data: bytes, other: bytes) -> bytes:
    place = draws.randrange(min(len(data), draws.choice((16, 64, 512, len(data)))) + 1)
    length = draws.choice((1, 2, 4, 8, 16, 64, 512))
    head, tail = data[:place], data[place:]
    match draws.choice(_CHANGES):
        case "flip":
            return head + bytes([byte ^ 1 << draws.randrange(8) for byte in tail[:1]]) + tail[1:]
        case "byte":
            return head + draws.randbytes(1) + tail[1:]
        case "garbage":
            return head + draws.randbytes(length) + tail[length:]
        case "insert":
            return head + draws.randbytes(length) + tail
        case "same":
            return head + bytes([draws.choice((0, 0x20, 0x30, 0x7F, 0xFF))]) * length + tail[length:]
        case "cut":
            return head
        case "remove":
            return head + tail[length:]
        case "repeat":
            return head + tail[:length] * draws.choice((2, 3, 50)) + tail[length:]
        case "splice":
            return head + other[draws.randrange(len(other) + 1) :]
        case "number":
            width = draws.choice((1, 2, 4, 8))
            return head + number_bytes(draws, width) + tail[width:]
        case _:
            return head + strange_bytes(draws) + tail


def number_bytes(draws: Random, width: int) -> bytes:
    """Draw a number at a boundary, in `width` bytes of either order."""
    return (boundary(draws) % (1 << 8 * width)).to_bytes(width, draws.choice(("little", "big")))


def mutate_items(draws: Random, items: Sequence[Any], change: Callable[[Any], Any], most: int = 50) -> list[Any]:
    """Remove, repeat, swap or change entries of a list."""
    items = list(items)
    for _ in range(draws.choice((1, 1, 2, 3))):
        if not items:
            break
        place = draws.randrange(len(items))
        match draws.choice(("remove", "repeat", "swap", "change", "change", "change", "change")):
            case "remove":
                del items[place]
            case "repeat":
                items[place:place] = [items[place]] * draws.choice((1, 2, most))
            case "swap":
                other = draws.randrange(len(items))
                items[place], items[other] = items[other], items[place]
            case _:
                items[place] = change(items[place])
    return items


# ------------------------------------------------------------------------------------------------ JSON


def mutate_json(draws: Random, value: Any) -> str:
    """Return the text of a JSON value with changed types, keys and numbers. A few texts are not JSON."""
    value = [copy.deepcopy(value)]
    raw: list[str] = []
    for _ in range(draws.choice((1, 1, 1, 2, 3))):
        holder, key = draws.choice(list(_places(value)))
        found = holder[key]
        match draws.choice(("value", "value", "value", "number", "remove", "rename", "move", "wrap", "grow", "raw")):
            case "value":
                holder[key] = strange_value(draws)
            case "number" if isinstance(found, int | float):
                holder[key] = draws.choice((boundary(draws), found + 1, -found, 0.5, str(found)[:4000]))
            case "remove" if holder is not value:
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[strange_text(draws)] = holder.pop(key)
            case "move":
                holder[key] = copy.deepcopy(draws.choice([place[name] for place, name in _places(value)]))
            case "wrap":
                holder[key] = draws.choice(([found], {"a": found}, [found, found], [[found]]))
            case "grow" if isinstance(found, list) and found:
                holder[key] = found * draws.choice((2, 40))
            case "raw":
                raw.append(draws.choice(_RAW))
                holder[key] = f"@raw{len(raw) - 1}@"
    text = json.dumps(value[0], ensure_ascii=draws.random() < 0.9)
    for number, replacement in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', replacement)
    return text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield container and key of everything within a value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def mutate_json_file(draws: Random, data: bytes) -> bytes:
    """Damage a JSON file as a value, or as bytes."""
    if draws.random() < 0.8:
        with suppress(ValueError, RecursionError):
            return mutate_json(draws, json.loads(data)).encode("utf-8", "surrogatepass")
    return mutate_bytes(draws, data)


# ------------------------------------------------------------------------------------------------ lines of text


def mutate_lines(draws: Random, text: str, values: Sequence[str], lines: Sequence[str]) -> str:
    """Damage `key: value` lines of a text: change values and indentation, replace, repeat and remove lines."""

    def change(line: str) -> str:
        key, colon, value = line.partition(":")
        match draws.choice(("value", "value", "value", "line", "indent", "key", "number", "comment")):
            case "value":
                return f"{key}: {draws.choice(values)}"
            case "line":
                return draws.choice(lines)
            case "indent":
                return draws.choice((" ", "  ", "    ", "\t", "-", "- ")) + line
            case "key":
                return f"{strange_text(draws)}{colon}{value}"
            case "number":
                return f"{key}: {boundary(draws)}"
            case _:
                return line.replace(" ", " # ")

    return "\n".join(mutate_items(draws, text.split("\n"), change))
