"""Problems of a recipe in plain words: the expected value, the value found, and the closest correct name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic_core import ErrorDetails

from seresnext.printable import shorten
from seresnext.recipe.reader import Node
from seresnext.recipe.schema import Recipe, Section

_NAMES_ELSEWHERE = {
    "augment": "augmentation",
    "augment.erasing": "random_erasing",
    "augment.erasing.probability": "reprob",
    "augment.flip": "hflip",
    "augment.policy": "aa auto_augment",
    "augment.repeats": "aug_repeats",
    "batch.global_size": "b batch_size bs train_batch_size",
    "batch.micro_size": "accumulation accumulation_steps",
    "data.image_size": "crop_size img_size imgsz",
    "data.progressive": "progressive_resizing",
    "data.root": "data_dir data_path",
    "data.sampling": "sampler weighted_sampler",
    "data.workers": "j num_workers workers",
    "evaluation": "eval validation",
    "evaluation.batch_size": "eval_batch_size",
    "evaluation.best_by": "metric_for_best_model monitor",
    "length": "epochs max_epochs max_steps num_epochs num_steps",
    "loss.class_weights": "class_weight cls_weights",
    "loss.label_smoothing": "smoothing",
    "loss.name": "criterion",
    "model.drop_path_rate": "drop_path stochastic_depth",
    "model.drop_rate": "dropout",
    "model.frozen": "freeze",
    "model.name": "arch model",
    "model.weights": "pretrained",
    "optimizer.layer_decay": "layer_wise_lr_decay llrd",
    "optimizer.lr": "learning_rate lr",
    "optimizer.name": "opt",
    "optimizer.weight_decay": "wd",
    "runtime.grad_checkpointing": "gradient_checkpointing",
    "runtime.precision": "amp dtype",
    "schedule": "scheduler",
    "schedule.every": "step_size",
    "schedule.factor": "gamma",
    "schedule.name": "lr_scheduler sched",
    "schedule.warmup": "warmup_epochs",
}
COMMON_NAMES = {name: key for key, names in _NAMES_ELSEWHERE.items() for name in names.split()}
"""Names in other tools, in lower case with `_` for `-`, and the keys of a recipe with the same meaning."""

REMOVED = {
    "runtime.measure": "remove the key, and set runtime.compile and runtime.channels_last if the defaults are slow",
    "data.cache_size": "remove the key; all downloaded shards stay in the folder data.cache",
    "runtime.static_graph": "remove the key; the run stays the same",
    "batch.micro_size=auto": "write a number that fits in the memory of the GPU, such as 64",
}
"""Keys and values of version 0.1 that exist no more, and the fix. A saved recipe may have these keys."""

# Text after a suggested key.
_ASIDES = {
    "batch.global_size": " (all images of a step; batch.micro_size is one forward pass)",
    "batch.micro_size": " (global_size / micro_size is the accumulation)",
    "length": ", such as 90ep or 5000st",
}

# Options of train.py that look like keys.
_OPTIONS = {"resume": "--resume", "output": "--output", "output_dir": "--output", "device": "--device"}


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
def all_keys(section: type[Section] = Recipe) -> dict[str, bool]:
    """Return every key of a recipe as a dotted path. The value tells whether the key is a section."""
    keys = {}
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        keys[name] = inner is not None
        if inner:
            keys |= {f"{name}.{key}": is_section for key, is_section in all_keys(inner).items()}
    return keys


def _normalized(text: str, separator: str = "_") -> str:
    return text.lower().replace("-", separator).replace(" ", separator).replace("_", separator)


def near_miss(word: str, choices: list[str]) -> str | None:
    """Return the choice that is closest to a word, or None if no choice is close."""
    # 'SE-ResNeXt50' and 'resnext50' are close to a short name without the underscores.
    for separator, cutoff in (("_", 0.6), ("", 0.75)):
        spelled = {_normalized(choice, separator): choice for choice in reversed(choices)}
        close = difflib.get_close_matches(_normalized(word[:80], separator), spelled, n=1, cutoff=cutoff)
        if close:
            return spelled[close[0]]
    return None


def unknown_key(parent: str, name: str) -> str:
    """Return the message for a key that does not exist in the section `parent` ('' is the top)."""
    if fix := REMOVED.get(f"{parent}.{name}"):
        return f"was removed in version 0.2; {fix}"
    keys = all_keys()
    last = {key: key.rpartition(".")[2] for key in keys}
    here = {last[key]: key for key in keys if key.rpartition(".")[0] == parent}
    if "." in name and name in keys:
        section, _, key = name.rpartition(".")
        return f"unknown key; write the key inside the section, as '{section}: {{{key}: ...}}'"
    if common := COMMON_NAMES.get(_normalized(name)):
        return f"unknown key; did you mean {common}{_ASIDES.get(common, '')}?"
    if option := _OPTIONS.get(_normalized(name)):
        return f"unknown key; give {option} on the command line"
    if same_name := [key for key in keys if last[key] == _normalized(name)]:
        return f"unknown key; did you mean {' or '.join(same_name)}?"
    if close := near_miss(name, list(here)):
        return f"unknown key; did you mean {here[close]}?"
    if close := near_miss(name, list(last.values())):
        return f"unknown key; did you mean {' or '.join(key for key in keys if last[key] == close)}?"
    if not here:
        return f"unknown key; there is no section {shorten(parent)}"
    return f"unknown key; the {f'keys of {parent}' if parent else 'sections'} are {', '.join(here)}"


def _found(node: Node | None) -> str:
    if node is None:
        return "nothing"
    if isinstance(node.value, dict):
        return "a section" if node.value else "an empty section"
    if isinstance(node.value, list):
        return f"a list of {len(node.value)}"
    if node.value is None:
        return node.written or "nothing (null)"
    if isinstance(node.value, bool) and node.written.lower() not in ("true", "false"):
        return f"{node.written}, which YAML reads as {str(node.value).lower()}"
    if isinstance(node.value, str) and node.written == node.value:
        return f"the text {shorten(repr(node.value))}"
    return shorten(node.written)


_LIMIT = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below", "less_than_equal": "at most"}


def _type_problem(expected: str, node: Node | None, hint: str = "") -> str:
    return f"expected {expected}, found {_found(node)}" + (f"; {hint}" if hint else "")


def _number_hint(node: Node | None) -> str:
    if node is None:
        return ""
    if isinstance(node.value, str) and node.written != node.value and node.value.replace(".", "", 1).isdigit():
        return "remove the quotes"
    if isinstance(node.value, bool):
        return "write the number" if node.value else "to switch this off, write 0, or null where null is allowed"
    if isinstance(node.value, float) and node.value.is_integer():
        return f"write {int(node.value)}"
    return ""


def _text_hint(node: Node | None) -> str:
    if node is None or isinstance(node.value, dict | list):
        return ""
    return "write a name" if node.value is None else f"for text, write '{shorten(node.written)}' in quotes"


def _message(error: ErrorDetails, node: Node | None) -> str:
    kind = error["type"]
    context = error.get("ctx", {})
    value = None if node is None else node.value
    if kind in _LIMIT:
        (bound,) = context.values()
        bound = int(bound) if isinstance(bound, float) and bound.is_integer() else bound
        return f"must be {_LIMIT[kind]} {bound}, found {_found(node)}"
    match kind:
        case "literal_error":
            # Pydantic gives the words of a Literal as one text: "'a', 'b' or 'c'".
            choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            expected = choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
            close = near_miss(value, choices) if isinstance(value, str) else None
            hint = f"did you mean {close}?" if close else _text_hint(node) if isinstance(value, bool) else ""
            return _type_problem(expected, node, hint)
        case "int_type" | "int_from_float" | "int_parsing_size":
            return _type_problem("a whole number", node, _number_hint(node))
        case "float_type":
            if isinstance(value, int) and not isinstance(value, bool):
                return f"is too large, found {_found(node)}"
            return _type_problem("a number", node, _number_hint(node))
        case "finite_number":
            return f"must be finite, found {_found(node)}"
        case "bool_type":
            hint = "write true or false" if not isinstance(value, dict | list) else ""
            return _type_problem("true or false", node, hint)
        case "string_type":
            return _type_problem("text", node, _text_hint(node))
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "string_too_short":
            return "must not be empty"
        case "tuple_type" if error["loc"][-1] in ("frozen", "ignore", "sinks"):
            return _type_problem("a list of texts", node, "write brackets and quotes, such as ['one', 'two']")
        case "tuple_type":
            return _type_problem("a list of numbers", node, "write brackets, such as [0.08, 1.0]")
        case "too_short" | "too_long" | "missing":
            length = context.get("min_length", context.get("max_length", 2))
            return _type_problem(f"a list of {length} numbers", node)
        case "model_type":
            hint = "remove the section to use the defaults" if value is None else ""
            name = ".".join(str(step) for step in (*error["loc"], "name"))
            if isinstance(value, str) and name in all_keys():
                hint = f"write {name}"
            if value is False:
                hint = "to switch this off, write null where null is allowed"
            return _type_problem("a section of keys", node, hint)
        case "value_error":
            reason = str(context["error"])
            # A reason about a part of a mapping or list names the part.
            is_named = " is " in reason if isinstance(value, dict | list) else node and str(value) in reason
            return reason if is_named else f"{reason}, found {_found(node)}"
    return f"{error['msg']}, found {_found(node)}"


def explain(error: ErrorDetails, root: Node) -> tuple[Problem, Node | None]:
    """Return one error of pydantic as a problem, and the node with the error (None if something is missing)."""
    loc = error["loc"]
    keys = tuple(step for step in loc if isinstance(step, str))
    path = ".".join(keys)
    node = root.at(loc)
    if error["type"] == "extra_forbidden":
        return Problem(shorten(path), unknown_key(".".join(keys[:-1]), keys[-1])), node
    if error["type"] == "missing" and len(loc) == len(keys):
        if path == "model":
            path = "model.name"
        return Problem(path, "is missing; write the name of the model, such as 'model: {name: seresnext50}'"), None
    if node and (fix := REMOVED.get(f"{path}={node.value}")):
        return Problem(path, f"{node.value} was removed in version 0.2; {fix}"), node
    if error["type"] == "missing":  # A number of a pair is missing.
        loc, node = keys, root.at(keys)
    index = "".join(f"[{step}]" for step in loc if isinstance(step, int))
    return Problem(path + index, _message(error, node)), node or root.at(keys)
