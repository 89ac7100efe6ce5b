"""Mistakes in recipes, as tables: the text of a recipe, and parts of the one message that results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seresnext.errors import RecipeError
from seresnext.recipe import load_recipe

GOOD = "model: {name: seresnext26}\n"
Problems = Callable[..., list[str]]


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Problems:
    """Write a recipe as `r.yaml` in the current folder, load the file, and return the problems."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, *overrides: str) -> list[str]:
        Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            load_recipe("r.yaml", overrides)
        except RecipeError as error:
            return error.problems
        return []

    return load


# The text of a recipe after line 1, `model: {name: seresnext26}`, or instead of line 1. Then parts of the one message.
WRONG_VALUES = [
    ("optimizer: {weight_decey: 0.1}", "r.yaml:2: optimizer.weight_decey: unknown key", "optimizer.weight_decay?"),
    ("data:\n  flip: 0.1", "r.yaml:3: data.flip: ", "did you mean augment.flip?"),
    ("every: 1ep", "schedule.every or evaluation.every or checkpoint.every"),
    ("optimizer.lr: 0.1", "optimizer.lr: unknown key", "'optimizer: {lr: ...}'"),
    ("zzzzzzz: 1", "unknown key; the sections are model, data,"),
    ("optimizer: {lr: fast}", "optimizer.lr: expected a number, found the text 'fast'"),
    ("optimizer: {lr: '0.1'}", "expected a number, found '0.1'; remove the quotes"),
    ("optimizer: {momentum: true}", "optimizer.momentum: expected a number, found true"),
    ("mix: {mixup: off}", "found off, which YAML reads as false", "write 0"),
    ("data: {root: no}", "expected text, found no, which YAML reads as false", "write 'no' in quotes"),
    ("schedule: {name: yes}", "one of step, cosine", "found yes, which YAML reads as true"),
    ("ema: off", "r.yaml:2: ema: expected a section", "found off", "write null"),
    ("optimizer: {nesterov: 1}", "expected true or false, found 1; write true or false"),
    ("runtime: {compile: 1}", "runtime.compile: expected 'auto', true or false, found 1"),
    ("data: {root: 12}", "expected text, found 12", "write '12' in quotes"),
    ("data: {root: ''}", "data.root: must not be empty"),
    ("data: {root: null}", "data.root: expected text, found null"),
    ("data: {workers: 8.0}", "expected a whole number, found 8.0; write 8"),
    ("optimizer: {lr: {a: 1}}", "expected a number, found a section"),
    ("augment: {crop_scale: 0.5}", "expected a list of numbers, found 0.5"),
    ("data: {ignore: drafts}", "expected a list of texts, found the text 'drafts'; write brackets and quotes"),
    ("data: {split: {val: 1}}", "must be below 1, found 1"),
    ("augment: {crop_scale: [0.5]}", "augment.crop_scale: expected a list of 2 numbers, found a list of 1"),
    ("augment: {crop_scale: [0.5, 1, 1]}", "augment.crop_scale: expected a list of 2 numbers, found a list of 3"),
    ("data: {mean: [0.5, x, 0.5]}", "data.mean[1]: expected a number, found the text 'x'"),
    ("logging:", "logging: expected a section of keys, found nothing", "remove the section"),
    ("optimizer: {name: sdg}", "expected one of sgd, adamw, found the text 'sdg'; did you mean sgd?"),
    ("optimizer: {weight_decay: -1e-4}", "must be at least 0, found -1e-4"),
    ("augment: {flip: 1.5}", "augment.flip: must be at most 1, found 1.5"),
    ("runtime: {seed: 9223372036854775808}", "must be below 9223372036854775808"),
    ("optimizer: {lr: -.INF}", "optimizer.lr: must be finite, found -.INF"),
    ("data: {std: [1, 1, .nan]}", "data.std[2]: must be finite, found .nan"),
    ("length: 100", "'100ep' for epochs or '100st'"),
    ("length: 90 epochs", "'90 epochs' is not a duration; write epochs as '90ep'"),
    ("length: 0ep", "length: must be at least 1 epoch or 1 step, found the text '0ep'"),
    ("length: 99999999999ep", "a duration is at most 1000000000"),
    (f"length: {'9' * 5000}ep", "a duration is short", "found the text '999"),
    ("data: {workers: 010}", "r.yaml:2: data.workers: 010 begins with 0"),
    ("data: {workers: 0x10}", "0x10 is not decimal"),
    ("data: {workers: 1_0}", "1_0 has underscores"),
    ("data: {workers: 1:30}", "1:30 is a base-60 number"),
    (f"data: {{workers: {'9' * 5000}}}", "has 5000 digits"),
    ('data: {root: "a\\nb"}', "data.root: text with a line break"),
    ('data: {root: "\\uD800"}', "control character"),
    ('"a\\e[31m": 1', "control character"),
    ("loss: {label_smoothing: 0.1,\n  label_smoothing: 0.2}", "r.yaml:3: ", "first written in r.yaml:2"),
    ("loss: {}\nmix: {}\nloss: {}", "r.yaml:4: loss: duplicate key, first written in r.yaml:2"),
    ("runtime: {measure: false}", "runtime.measure: was removed in version 0.2; remove the key"),
    ("batch: {micro_size: auto}", "r.yaml:2: batch.micro_size: auto was removed in version 0.2; write"),
    ("loss: &a {label_smoothing: 0.1}", "r.yaml:2: loss: anchor &a", "base:"),
    ("data: {root: !!python/object/apply:os.getcwd []}", "data.root: tag !!python/object/apply:os.getcwd"),
    ("data: {workers: !!int '8'}", "data.workers: tag !!int"),
    ("loss: {<<: {label_smoothing: 0.1}}", "loss: merge key '<<'"),
    ("base:", "r.yaml:2: base: expected a recipe or a list"),
    ("base: [no.yaml]", "base: no recipe 'no.yaml': the folder of r.yaml has no such", "recipes: cifar10, digits,"),
    (f"base: {'x' * 5000}", "base: no recipe 'xxx"),
    ('base: "a\\0b"', "r.yaml:2: base: text with a line break or another control character"),
    ("base: /", "base: no recipe '/'"),
    ("base: r.yaml", "r.yaml:2: base: r.yaml is based on itself: r.yaml -> r.yaml"),
]
WHOLE_RECIPES = [
    ("length: 1ep", "r.yaml: model.name: is missing"),
    ("model: {num_classes: 2}", "r.yaml: model.name: is missing"),
    ("model: {name: SE-ResNeXt-101}", "r.yaml:1: model.name: ", "did you mean seresnext101?"),
    ("model: {name: vit}", "r.yaml:1: model.name: expected one of seresnext26, seresnext50"),
    ("model:\n  name: seresnext26\n  num_classes: 1", "r.yaml:3: model.num_classes: must be at least 2, found 1"),
    ("", "r.yaml: is empty"),
    ("null", "r.yaml:1: is empty"),
    (GOOD + "---\nlength: 1ep\n", "r.yaml:2: a second document begins here"),
    ("model:\n\tname: seresnext26", "r.yaml:2: a tab; indent and separate with spaces"),
    ("model:\n  name:\tseresnext26", "r.yaml:2: a tab; indent and separate with spaces"),
    ("model:\n  name: seresnext26\n   num_classes: 5", "r.yaml:3: unexpected ':'"),
    ("model: {name: seresnext26\nlength: 1ep", "r.yaml:2: not readable as YAML"),
    ("model: {name: 'seresnext26}\n", "not readable as YAML"),
    ("[a, b]: 1", "r.yaml:1: a key must be text"),
    ('model: {name: "\\UFFFFFFFF"}', "r.yaml:1: not readable as YAML"),
    (GOOD + "# \x1b[31m", "r.yaml:2: character U+001B is not allowed"),
    (b"\xef\xbb\xbf" + GOOD.encode(), "r.yaml:1: begins with a byte order mark"),
    (GOOD.encode("utf-16"), "r.yaml:1: begins with a byte order mark"),
    (GOOD.encode() + b"\n\0", "r.yaml:3: contains a NUL byte"),
    (GOOD.encode() + b"# caf\xe9\n", "r.yaml:2: byte 0xe9 is not UTF-8"),
    (GOOD + "#" * 1_000_001, "r.yaml: larger than 1,000,000 bytes"),
    ("a: " + "[" * 300_000, "r.yaml:1: nested deeper than 10"),
    ("- " * 300_000, "r.yaml:1: nested deeper than 10"),
    ("\n".join(" " * i + "a:" for i in range(500)), "nested deeper than 10"),
    (GOOD + "data: {workers: " + "0" * 990_000 + "x}", "r.yaml:2: data.workers: expected a whole"),
    ("a: [" + "1," * 100_000 + "]", "more than 1000 values"),
]


def short_id(value: object) -> str:
    return ascii(value)[:50]


@pytest.mark.parametrize(("text", "parts"), [(text, parts) for text, *parts in WRONG_VALUES], ids=short_id)
def test_wrong_value(text: str, parts: list[str], problems: Problems) -> None:
    (problem,) = problems(GOOD + text + "\n")
    for part in ["r.yaml:", *parts]:
        assert part in problem


@pytest.mark.parametrize(("text", "parts"), [(text, parts) for text, *parts in WHOLE_RECIPES], ids=short_id)
def test_wrong_file(text: str | bytes, parts: list[str], problems: Problems) -> None:
    start = time.perf_counter()
    (problem,) = problems(text)
    assert time.perf_counter() - start < 5
    for part in parts:
        assert part in problem


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD + "optimizer: {lr: 1, momentum: 0, weight_decay: 0}",
        GOOD + "optimizer: {lr: 1e-4, weight_decay: 1E-5, nesterov: yes}",
        "model: {name: seresnext26, weights: null}\nema: null\nmix: {off_after: ~}",
        GOOD + "data: {root: 'no', train_split: '010', val_split: '12:30'}",
        GOOD + "data: {root: 2026-01-01, val_split: v1.0.0}",
        "--- # one document\nloss: {}\n" + GOOD,
        GOOD + "data:\n  root: >-\n    data/imagenet",
        GOOD + "data: {root: Büilder/写真}",
        GOOD + "# a\tb\nloss: {} #\tc",
        GOOD + "loss: {}\r\nlength: 3ep\r\n",
    ],
    ids=short_id,
)
def test_correct_recipes_have_no_problem(text: str, problems: Problems) -> None:
    assert problems(text) == []


def test_all_problems_come_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    found = problems(
        "model: {name: seresnext5, num_classes: '5'}\n"
        "batch: {global_size: 100, micro_size: 64}\n"
        "optimizer:\n"
        "  lr: .inf\n"
        "  nesterov: true\n"
        "  momentum: 0\n"
        "lenght: 5ep\n"
        "schedule: {name: cosine, every: 30ep}\n"
        "data: {workers: 010}\n",
        "optimizer.lr",
        "mix.mixup=-1",
    )
    beginnings = [
        "r.yaml:9: data.workers: 010",
        "--set optimizer.lr: write KEY=VALUE",
        "--set: mix.mixup: must be at least 0",
        "r.yaml:1: model.name",
        "r.yaml:1: model.num_classes",
        "r.yaml:2: batch.global_size",
        "r.yaml:4: optimizer.lr",
        "r.yaml:5: optimizer.nesterov",
        "r.yaml:7: lenght: unknown key; did you mean length?",
        "r.yaml:8: schedule.every",
    ]
    for problem, beginning in zip(found, beginnings, strict=True):
        assert problem.startswith(beginning)


def test_wrong_key_causes_no_second_problem(problems: Problems) -> None:
    # momentum is invalid, so nesterov cannot be compared with momentum.
    found = problems(GOOD + "optimizer: {nesterov: true, momentum: none}\nbatch: {micro_size: many}\n")
    assert [problem.split(": ")[1] for problem in found] == ["optimizer.momentum", "batch.micro_size"]


def test_many_problems_are_cut(problems: Problems) -> None:
    found = problems(GOOD + "".join(f"key{i}: 1\n" for i in range(500)))
    assert len(found) == 101
    assert found[-1] == "and 400 more"


@pytest.mark.parametrize(("override", "parts"), [
    ("optimizer.lr", ["--set optimizer.lr: write KEY=VALUE"]),
    ("=3", ["write KEY=VALUE"]),
    ("optimizer.learning_rate=3", ["--set optimizer.learning_rate=3: ", "did you mean optimizer.lr?"]),
    ("batch_size=32", ["--set batch_size=32: ", "batch.global_size"]),
    ("optimiser.lr=3", ["did you mean optimizer.lr?"]),
    ("length.epochs=3", ["length has no keys inside; set the value as a whole"]),
    ("base=x.yaml", ["write the key in the file of a recipe"]),
    ("data.workers=010", ["--set data.workers=010: data.workers: 010 begins with 0"]),
    ("model.name=[a", ["--set model.name=[a: not readable as YAML"]),
    ("data.root=*a", ["--set data.root=*a: data.root: alias *a"]),
    ("data.root=\udcff", ["character U+DCFF is not allowed"]),
    ("runtime.measure=true", ["--set runtime.measure=true: runtime.measure: was removed in version 0.2"]),
    ("batch.micro_size=auto", ["--set: batch.micro_size: auto was removed in version 0.2"]),
    ("model=seresnext50", ["model: ", "model.name"]),
    ("ema={decai: 0.9}", ["--set: ema.decai: unknown key; did you mean ema.decay?"]),
    ("optimizer.lr=0.1 # test", ["optimizer.lr: ", "'0.1 # test'"]),
    ('data.root="a" # b', ["--set data.root=", "in quotes"]),
], ids=short_id)  # fmt: skip
def test_wrong_override(override: str, parts: list[str], problems: Problems) -> None:
    (problem,) = problems(GOOD, override)
    for part in parts:
        assert part in problem


def test_cycle_of_bases(problems: Problems) -> None:
    Path("a.yaml").write_text("base: b.yaml\n")
    Path("b.yaml").write_text("length: 1ep\nbase: a.yaml\n")
    assert problems("base: a.yaml\n" + GOOD) == [
        "b.yaml:2: base: a.yaml is based on itself: r.yaml -> a.yaml -> b.yaml -> a.yaml"
    ]


def test_many_bases_are_read_once_each_up_to_a_depth(problems: Problems) -> None:
    for i in range(30):
        Path(f"{i}.yaml").write_text(f"base: [{i + 1}.yaml, {i + 1}.yaml]\n")
    Path("18.yaml").write_text("length: 7ep\n")
    start = time.perf_counter()
    assert problems("base: 0.yaml\n" + GOOD) == []
    assert time.perf_counter() - start < 5  # 2^18 reads would take minutes
    Path("18.yaml").write_text("base: 19.yaml\n")
    assert "more than 20 files deep" in problems("base: 0.yaml\n" + GOOD)[0]


def test_base_gets_a_near_miss_and_a_problem_names_the_file_of_the_base(problems: Problems) -> None:
    Path("_base").mkdir()
    Path("_base/imagenet.yaml").write_text("# A comment.\noptimizer: {lr: 0}\n")
    for folder in ("_base", Path("_base").resolve()):
        assert f"did you mean {folder}/imagenet.yaml?" in problems(f"base: {folder}/imagnet.yaml\n" + GOOD)[0]
    wanted = ["_base/imagenet.yaml:2: optimizer.lr: must be above 0, found 0"]
    assert problems("base: _base/imagenet.yaml\n" + GOOD) == wanted


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(problems: Problems) -> None:
    Path("b.yaml").write_text("length: 3ep\n")
    Path("b.yaml").chmod(0)
    assert problems("base: b.yaml\n" + GOOD) == ["b.yaml: cannot be read: Permission denied"]


# Pieces with a meaning in YAML, for random texts.
PIECES = [
    *("model", "name", "seresnext26", "optimizer", "lr", "base", ": ", ":", "\n", "  ", "- ", "? ", ", ", "#", "<<"),
    *("~", "[", "]", "{", "}", "'", '"', "\\", "\\x", "%", "@", "`", "&a ", "*a", "!!int ", "!", "|\n", ">-\n", "0"),
    *("1e5", ".nan", "---\n", "...\n", "\t", "\r", "é", "\x85", "\u2028", "\ufeff", "%YAML 1.1\n", "%TAG ! a\n"),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=100))
def test_any_text_gives_only_problems(text: str, problems: Problems) -> None:
    for problem in problems(text, "optimizer.lr=" + text.replace("\0", "")):
        assert problem
        assert len(problem) < 1000
