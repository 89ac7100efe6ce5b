"""Problems of a recipe in plain words: the expected value, the value found, and the closest correct name."""

import difflib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic_core import ErrorDetails

from seresnext.errors import shorten
from seresnext.recipe.reader import Node
from seresnext.recipe.schema import Recipe, Section

_COMMON_NAMES = {
    "accumulationsteps": "batch.micro_size",
    "amp": "runtime.precision",
    "arch": "model.name",
    "batchsize": "batch.global_size",
    "datadir": "data.root",
    "epochs": "length",
    "learningrate": "optimizer.lr",
    "maxsteps": "length",
    "model": "model.name",
    "opt": "optimizer.name",
    "pretrained": "model.weights",
    "sched": "schedule.name",
    "wd": "optimizer.weight_decay",
}
"""Names in other tools, as `_normalized` returns them, and the keys of a recipe with the same meaning."""

REMOVED = {
    "runtime.measure": "remove the key, and set runtime.compile and runtime.channels_last if the defaults are slow",
    "data.cache_size": "remove the key; all downloaded shards stay in the folder data.cache",
    "runtime.static_graph": "remove the key; the run stays the same",
    "runtime.bucket_mb": "remove the key; DDP averages 25 MiB of gradients at a time",
    "batch.micro_size=auto": "write a number that fits in the memory of the GPU, such as 64",
}
"""Keys and values of version 0.1 that exist no more, and the fix. A saved recipe may have these keys."""


@dataclass(frozen=True)
class Problem:
    """A problem of `key`, a dotted path. `related` are the keys that `key` disagrees with."""

    key: str
    message: str
    related: tuple[str, ...] = ()


def one_of(words: list[str]) -> str:
    """Return `1`, `1 or 2` or `1, 2 or 3`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section class of a field, also of a field that may be null."""
    for choice in (annotation, *get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, Section):
            return choice
    return None


@cache
def all_keys(section: type[Section] = Recipe) -> list[str]:
    """Return every key of a recipe as a dotted path, sections too."""
    keys = []
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        keys += [name, *(f"{name}.{key}" for key in (all_keys(inner) if inner else ()))]
    return keys


def _normalized(text: str) -> str:
    return text.lower().replace("-", "").replace(" ", "").replace("_", "")


def near_miss(word: str, choices: list[str]) -> str | None:
    """Return the choice that is closest to a word, or None if no choice is close."""
    spelled = {_normalized(choice): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(_normalized(word[:80]), spelled, n=1, cutoff=0.65)
    return spelled[close[0]] if close else None


def unknown_key(parent: str, name: str) -> str:
    """Return the message for a key that does not exist in the section `parent` ('' is the top)."""
    if fix := REMOVED.get(f"{parent}.{name}"):
        return f"was removed in version 0.2; {fix}"
    if name == "base":
        return "is a key of files only; write the key at the top of the file of a recipe"
    if "." in name and name in all_keys():
        section, _, key = name.rpartition(".")
        return f"unknown key; write the key inside the section, as '{section}: {{{key}: ...}}'"
    word, last = _normalized(name), {key: key.rpartition(".")[2] for key in all_keys()}
    here = [key for key in last if key.rpartition(".")[0] == parent]
    found = [_COMMON_NAMES[word]] if word in _COMMON_NAMES else []
    found += [key for key in last if _normalized(last[key]) == word]
    for keys in (here, all_keys()):
        close = None if found else near_miss(name, [last[key] for key in keys])
        found += [key for key in keys if last[key] == close]
    if found:
        return f"unknown key; did you mean {one_of(found)}?"
    if not here:
        return f"unknown key; there is no section {shorten(parent)}"
    known = ", ".join(last[key] for key in here)
    return f"unknown key; the {f'keys of {parent}' if parent else 'sections'} are {known}"


def _found(node: Node) -> str:
    value, written = node.value, node.written
    if isinstance(value, bool) and written.lower() not in ("true", "false"):
        return f"{written}, which YAML reads as {str(value).lower()}"
    if isinstance(value, str) and written == value:
        return f"the text {shorten(repr(value))}"
    return shorten(written) or "nothing"


# Parts of pydantic's messages, in words for someone who writes YAML.
_WORDS = {
    "Input should": "must",
    "String should": "must",
    "Tuple should": "must",
    "Field required": "is missing",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    " after validation": "",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid tuple": "a list in brackets",
    "a valid string, unable to parse raw data as a unicode string": "text without control characters",
    "a valid string": "text",
    "a valid ": "a ",
}


def _message(error: ErrorDetails, node: Node | None) -> str:
    kind, value = error["type"], node and node.value
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, ")
    text, hint = error["msg"], ""
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    if kind == "model_type":
        text, hint = "must be a section of keys", "; write keys, null to switch this off, or nothing for the defaults"
    elif isinstance(value, bool):
        hint = "; write text in quotes, or 0 or null to switch this off"
    elif kind == "string_type":
        hint = "; write text in quotes"
    elif kind == "literal_error" and isinstance(value, str):
        close = near_miss(value, re.findall("'(.*?)'", text))
        hint = f"; did you mean {close}?" if close else ""
    return f"{text}, found {_found(node)}{hint}" if node else text


def explain(error: ErrorDetails, root: Node) -> tuple[Problem, Node | None]:
    """Return one error of pydantic as a problem, and the node with the error (None if something is missing)."""
    loc = error["loc"]
    keys = tuple(step for step in loc if isinstance(step, str))
    path = ".".join(keys)
    node = root.at(loc)
    if error["type"] == "extra_forbidden":
        return Problem(shorten(path), unknown_key(".".join(keys[:-1]), keys[-1])), node
    if error["type"] == "missing" and path in ("model", "model.name"):
        return Problem("model.name", "is missing; write the name, such as 'model: {name: seresnext50}'"), None
    if node and (fix := REMOVED.get(f"{path}={node.value}")):
        return Problem(path, f"{node.value} was removed in version 0.2; {fix}"), node
    index = "".join(f"[{step}]" for step in loc if isinstance(step, int))
    return Problem(path + index, _message(error, node)), node or root.at(keys)
