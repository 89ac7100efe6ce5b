"""Mistakes in recipes, as tables: the text of a recipe, and parts of the one message that results."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

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
    ("optimizer.lr: 0.1", "optimizer.lr: unknown key", "'optimizer: {lr: ...}'"),
    ("loss: {<<: {label_smoothing: 0.1}}", "loss.<<: unknown key; the keys of loss are name, label_smoothing,"),
    ("optimizer: {lr: fast}", "optimizer.lr: must be a number, found the text 'fast'"),
    ("mix: {mixup: off}", "found off, which YAML reads as false", "or 0 or null to switch this off"),
    ("data: {root: no}", "must be text, found no, which YAML reads as false; write text in quotes"),
    ("ema: off", "r.yaml:2: ema: must be a section of keys, found off", "null to switch this off"),
    ("data: {root: 12}", "must be text, found 12; write text in quotes"),
    ("optimizer: {nesterov: 1}", "must be true or false, found 1"),
    ("runtime: {compile: 1}", "runtime.compile: must be 'auto', true or false, found 1"),
    ("data: {root: ''}", "data.root: must have at least 1 character, found ''"),
    ("data: {workers: 8.0}", "must be a whole number, found 8.0"),
    ("optimizer: {lr: {a: 1}}", "must be a number, found a section"),
    ("augment: {crop_scale: 0.5}", "must be a list in brackets, found 0.5"),
    ("data: {split: {val: 1}}", "must be less than 1, found 1"),
    ("augment: {crop_scale: [0.5]}", "augment.crop_scale[1]: is missing"),
    ("augment: {crop_scale: [0.5, 1, 1]}", "augment.crop_scale: must have at most 2 items, not 3"),
    ("data: {mean: [0.5, x, 0.5]}", "data.mean[1]: must be a number, found the text 'x'"),
    ("logging:", "logging: must be a section of keys, found nothing", "or nothing for the defaults"),
    ("optimizer: {name: sdg}", "must be 'sgd' or 'adamw', found the text 'sdg'; did you mean sgd?"),
    ("optimizer: {weight_decay: -1e-4}", "must be at least 0, found -1e-4"),
    ("augment: {flip: 1.5}", "augment.flip: must be at most 1, found 1.5"),
    ("optimizer: {lr: -.INF}", "optimizer.lr: must be a finite number, found -.INF"),
    ("augment: {erasing: {value: noise}}", "augment.erasing.value: must be a finite number or 'random', found 'noise'"),
    ("length: 100", "'100' is not a duration; write epochs as '90ep' or optimizer steps as '2000st'"),
    ("length: 0ep", "length: must be at least 1 epoch or 1 step, found 0ep"),
    ("length: 99999999999ep", "a duration is at most 1000000000, found 99999999999ep"),
    (f"length: {'9' * 5000}ep", "'999999999999999999999999999999' is not a duration"),
    ("data: {workers: 010}", "r.yaml:2: data.workers: must be a whole number, found the text '010'"),
    (f"data: {{workers: {'9' * 5000}}}", "must be a whole number, found the text '999"),
    ('data: {root: "a\\nb"}', "data.root: must have no control character, found 'a\\nb'"),
    ('data: {root: "\\uD800"}', "data.root: must be text without control characters, found '\\ud800'"),
    ('"a\\e[31m": 1', "r.yaml:2: a key must be text without control characters"),
    ("loss: {label_smoothing: 0.1,\n  label_smoothing: 0.2}", "r.yaml:3: ", "first written in r.yaml:2"),
    ("runtime: {measure: false}", "runtime.measure: was removed in version 0.2; remove the key"),
    ("batch: {micro_size: auto}", "r.yaml:2: batch.micro_size: auto was removed in version 0.2; write"),
    ("loss: &a {label_smoothing: 0.1}", "r.yaml:2: an anchor, an alias or a tag; write values alone", "'base:'"),
    ("loss: *a", "r.yaml:2: an anchor, an alias or a tag"),
    ("data: {root: !!python/object/apply:os.getcwd []}", "r.yaml:2: an anchor, an alias or a tag"),
    ("&a data: {}", "r.yaml:2: a key must be text without control characters, anchor and tag"),
    ("base:", "r.yaml:2: base: must be a recipe or a list"),
    ("base: [no.yaml]", "base: no recipe 'no.yaml': the folder of r.yaml has no such", "recipes: cifar10, digits,"),
]
WHOLE_RECIPES = [
    ("length: 1ep", "r.yaml: model.name: is missing"),
    ("model: {name: SE-ResNeXt-101}", "r.yaml:1: model.name: ", "did you mean seresnext101?"),
    ("model: {name: vit}", "r.yaml:1: model.name: must be 'seresnext26', 'seresnext50'"),
    ("model:\n  name: seresnext26\n  num_classes: 1", "r.yaml:3: model.num_classes: must be at least 2, found 1"),
    ("", "r.yaml:1: is empty"),
    (GOOD + "---\nlength: 1ep\n", "r.yaml:2: a second document begins here"),
    ("model:\n\tname: seresnext26", "r.yaml:2: no YAML: ", "'\\t'", "indentation, which is by spaces"),
    (
        "model:\n  name: seresnext26\n   num_classes: 5",
        "r.yaml:3: no YAML: mapping values are not allowed here; check the quotes",
    ),
    ("model: {name: seresnext26\nlength: 1ep", "r.yaml:2: no YAML"),
    ("model: {name: 'seresnext26}\n", "no YAML: while scanning a quoted scalar, found unexpected end of stream"),
    ("[a, b]: 1", "r.yaml:1: a key must be text"),
    ('model: {name: "\\UFFFFFFFF"}', "r.yaml:1: no YAML; check the text in quotes"),
    (GOOD + "# \x1b[31m", "r.yaml:2: character U+001B is not allowed"),
    (GOOD.encode("utf-16"), "r.yaml:1 is not UTF-8 (byte 0xff)"),
    (GOOD.encode() + b"\n\0", "r.yaml:3: character U+0000 is not allowed"),
    (GOOD.encode() + b"# caf\xe9\n", "r.yaml:2 is not UTF-8 (byte 0xe9)"),
    (GOOD + "#" * 1_000_001, "r.yaml: larger than 1,000,000 bytes"),
    ("a: " + "[" * 300_000, "r.yaml:1: more than 1000 values, or nested deeper than 10"),
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
    assert time.perf_counter() - start < 20
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
        GOOD.encode("utf-8-sig"),
    ],
    ids=short_id,
)
def test_correct_recipes_have_no_problem(text: str, problems: Problems) -> None:
    assert problems(text) == []


def test_all_problems_come_at_once(problems: Problems) -> None:
    text = "model: {name: seresnext5}\nbatch: {global_size: 100, micro_size: 64}\nlenght: 5ep\ndata: {workers: many}\n"
    found = problems(text, "optimizer.lr", "mix.mixup=-1")
    places = ["--set optimizer.lr", "r.yaml:1", "r.yaml:4", "--set", "r.yaml:3", "r.yaml:2"]
    keys = ["write KEY=VALUE", "model.name", "data.workers", "mix.mixup", "lenght", "batch.global_size"]
    for problem, place, key in zip(found, places, keys, strict=True):
        assert problem.startswith(f"{place}: {key}")


def test_wrong_key_causes_no_second_problem(problems: Problems) -> None:
    # momentum is invalid, so nesterov cannot be compared with momentum.
    found = problems(GOOD + "optimizer: {nesterov: true, momentum: none}\nbatch: {micro_size: many}\n")
    assert [problem.split(": ")[1] for problem in found] == ["batch.micro_size", "optimizer.momentum"]


def test_many_problems_are_cut(problems: Problems) -> None:
    found = problems(GOOD + "".join(f"key{i}: 1\n" for i in range(500)))
    assert len(found) == 101
    assert found[-1] == "and 400 more"


@pytest.mark.parametrize(("override", "parts"), [
    ("optimizer.lr", ["--set optimizer.lr: write KEY=VALUE"]),
    ("optimizer.learning_rate=3", ["--set optimizer.learning_rate=3: ", "did you mean optimizer.lr?"]),
    ("base=x.yaml", ["base: is a key of files only"]),
    ("model.name=[a", ["--set model.name=[a: no YAML"]),
    ("data.root=\udcff", ["data.root: must be text without control characters"]),
    ("runtime.measure=true", ["--set runtime.measure=true: runtime.measure: was removed in version 0.2"]),
    ("model=seresnext50", ["--set: model: must be a section of keys, found the text 'seresnext50'"]),
    ("optimizer.lr=0.1 # test", ["optimizer.lr: ", "'0.1 # test'"]),
    ("data.ignore=['a' #b]", ["--set data.ignore=", "check the quotes"]),
    ('data.root="a" b', ["--set data.root=", "check the quotes"]),
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


def test_many_bases_are_read_once_each(problems: Problems) -> None:
    for i in range(30):
        Path(f"{i}.yaml").write_text(f"base: [{i + 1}.yaml, {i + 1}.yaml]\n")
    Path("30.yaml").write_text("length: 7ep\n")
    start = time.perf_counter()
    assert problems("base: 0.yaml\n" + GOOD) == []
    assert time.perf_counter() - start < 20  # 2^30 reads would take hours
    for i in range(30, 60):
        Path(f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n")
    (problem,) = problems("base: 0.yaml\n" + GOOD)
    assert problem == "49.yaml:1: base: more than 50 files deep; write the keys into fewer files"


def test_base_gets_a_near_miss_and_a_problem_names_the_file_of_the_base(problems: Problems) -> None:
    Path("_base").mkdir()
    Path("_base/imagenet.yaml").write_text("# A comment.\noptimizer: {lr: 0}\n")
    assert "did you mean seresnext50?" in problems("base: _base/seresnet50.yaml\n" + GOOD)[0]
    wanted = ["_base/imagenet.yaml:2: optimizer.lr: must be greater than 0, found 0"]
    assert problems("base: _base/imagenet.yaml\n" + GOOD) == wanted
