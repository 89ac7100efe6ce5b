"""Every mistake an author can make, as a table: the text of a recipe, and what the one message must say."""

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
    """Write a recipe as `r.yaml` in the current folder, load it, and return its problems (none if it is good)."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, *overrides: str) -> list[str]:
        Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            load_recipe("r.yaml", overrides)
        except RecipeError as error:
            return error.problems
        return []

    return load


# Each: the recipe below `model: {name: seresnext26}` in line 1, so that the text begins in line 2; then parts of the
# one line that must come of it.
WRONG_VALUES = {
    "unknown key": ("optimizer: {weight_decey: 0.1}", "r.yaml:2: optimizer.weight_decey: ", "optimizer.weight_decay?"),
    "key of another section, at the top": ("lr: 0.1", "r.yaml:2: lr: unknown key", "did you mean optimizer.lr?"),
    "key of another section": ("data:\n  flip: 0.1", "r.yaml:3: data.flip: ", "did you mean augment.flip?"),
    "key of several sections": ("every: 1ep", "schedule.every or evaluation.every or checkpoint.every"),
    "key by another framework's name": ("epochs: 90", "r.yaml:2: epochs: ", "did you mean length, such as"),
    "dotted key": ("optimizer.lr: 0.1", "optimizer.lr: unknown key", "'optimizer: {lr: ...}'"),
    "unlike any key": ("zzzzzzz: 1", "unknown key; the sections are model, data,"),
    "unlike any key of its section": ("batch: {qqqqqqq: 1}", "the keys of batch are global_size, micro_size"),
    "misspelled section": ("optimiser: {lr: 1}", "r.yaml:2: optimiser: ", "did you mean optimizer?"),
    "text for a number": ("optimizer: {lr: fast}", "expected a number, found the text 'fast'"),
    "quoted number": ("optimizer: {lr: '0.1'}", "expected a number, found '0.1'; remove the quotes"),
    "quoted whole number": ("data: {workers: '8'}", "expected a whole number, found '8'; remove the quotes"),
    "decimal comma": ("optimizer: {lr: '0,1'}", "optimizer.lr: expected a number, found '0,1'"),
    "boolean for a number": ("optimizer: {momentum: true}", "optimizer.momentum: expected a number, found true"),
    "boolean for a whole number": ("batch: {micro_size: true}", "expected a whole number, found true"),
    "off for a number": ("mix: {mixup: off}", "found off, which YAML reads as false", "write 0"),
    "no for text": ("data: {root: no}", "expected text, found no, which YAML reads as false", "write 'no' in quotes"),
    "yes for a word": ("schedule: {name: yes}", "one of step, cosine", "found yes, which YAML reads as true"),
    "off for a section": ("ema: off", "r.yaml:2: ema: expected a section", "found off", "write null"),
    "number for a boolean": ("optimizer: {nesterov: 1}", "expected true or false, found 1; write true or false"),
    "number for a boolean or auto": (
        "runtime: {compile: 1}",
        "runtime.compile: expected 'auto', true or false, found 1",
    ),
    "text for a boolean": ("optimizer: {nesterov: 'yes'}", "expected true or false, found 'yes'"),
    "number for text": ("data: {root: 12}", "expected text, found 12", "write '12' in quotes"),
    "empty text": ("data: {root: ''}", "data.root: must not be empty"),
    "null for text": ("data: {root: null}", "data.root: expected text, found null"),
    "whole float": ("data: {workers: 8.0}", "expected a whole number, found 8.0; write 8"),
    "float": ("data: {workers: 8.5}", "expected a whole number, found 8.5"),
    "list for a number": ("optimizer: {lr: [1]}", "expected a number, found a list of 1"),
    "section for a number": ("optimizer: {lr: {a: 1}}", "expected a number, found a section"),
    "number for a list": ("augment: {crop_scale: 0.5}", "expected a list of numbers, found 0.5"),
    "short list": ("augment: {crop_scale: [0.5]}", "expected a list of 2 numbers, found a list of 1"),
    "long list": ("augment: {crop_scale: [0.5, 1, 1]}", "expected a list of 2 numbers, found a list of 3"),
    "text in a list": ("data: {mean: [0.5, x, 0.5]}", "data.mean[1]: expected a number, found the text 'x'"),
    "number for a section": ("mix: 3", "r.yaml:2: mix: expected a section of keys, found 3"),
    "list for a section": ("mix: [1]", "mix: expected a section of keys, found a list of 1"),
    "section left empty": ("logging:", "logging: expected a section of keys, found nothing", "leave the section out"),
    "unknown word": ("optimizer: {name: sdg}", "expected sgd, found the text 'sdg'; did you mean sgd?"),
    "unknown precision": (
        "runtime: {precision: bfloat16}",
        "one of auto, fp64, fp32, bf16, fp16",
        "did you mean bf16?",
    ),
    "negative": ("optimizer: {weight_decay: -1e-4}", "must be at least 0, found -1e-4"),
    "zero": ("optimizer: {lr: 0}", "optimizer.lr: must be above 0, found 0"),
    "zero clip_norm": ("optimizer: {clip_norm: 0}", "optimizer.clip_norm: must be above 0, found 0"),
    "too small": ("model: {num_classes: 1}", "model.num_classes: must be at least 2, found 1"),
    "too large": ("augment: {flip: 1.5}", "augment.flip: must be at most 1, found 1.5"),
    "at the open end": ("optimizer: {momentum: 1}", "must be below 1, found 1"),
    "seed too large": ("runtime: {seed: 9223372036854775808}", "must be below 9223372036854775808"),
    "not finite": ("optimizer: {lr: .inf}", "optimizer.lr: must be finite, found .inf"),
    "negative and not finite": ("optimizer: {lr: -.INF}", "must be finite, found -.INF"),
    "not a number": ("optimizer: {lr: .nan}", "optimizer.lr: must be finite, found .nan"),
    "overflow": ("optimizer: {lr: 1e999}", "must be finite, found 1e999"),
    "not finite in a list": ("data: {std: [1, 1, .nan]}", "data.std[2]: must be finite, found .nan"),
    "duration without a unit": ("length: 100", "'100ep' for epochs or '100st'"),
    "duration in words": ("length: 90 epochs", "'90 epochs' is not a duration; write epochs as '90ep'"),
    "fractional duration": ("length: 1.5ep", "'1.5ep' is not a duration"),
    "negative duration": ("length: -1ep", "'-1ep' is not a duration"),
    "zero epochs": ("length: 0ep", "length: must be at least 1 epoch or 1 step, found the text '0ep'"),
    "zero interval": ("logging: {every: 0st}", "logging.every: must be at least 1 epoch or 1 step"),
    "list for a duration": ("length: [1ep]", "expected a duration such as '90ep'", "found a list of 1"),
    "endless duration": ("length: 99999999999ep", "a duration is at most 1000000000"),
    "duration of 5000 digits": ("length: " + "9" * 5000 + "ep", "a duration is short", "found the text '999"),
    "octal": ("data: {workers: 010}", "r.yaml:2: data.workers: 010 begins with 0"),
    "hexadecimal": ("data: {workers: 0x10}", "0x10 is not decimal"),
    "underscores": ("data: {workers: 1_0}", "1_0 has underscores"),
    "base 60": ("data: {workers: 1:30}", "1:30 is a base-60 number"),
    "number of 200 digits": ("data: {workers: " + "9" * 200 + "}", "has 200 digits"),
    "number of 5000 digits": ("data: {workers: " + "9" * 5000 + "}", "has 5000 digits"),
    "line break in text": ('data: {root: "a\\nb"}', "data.root: text with a line break"),
    "half a surrogate pair": ('data: {root: "\\uD800"}', "control character"),
    "control character in a key": ('"a\\e[31m": 1', "control character"),
    "duplicate key": ("loss: {label_smoothing: 0.1,\n  label_smoothing: 0.2}", "r.yaml:3: ", "first written in line 2"),
    "duplicate section": ("loss: {}\nmix: {}\nloss: {}", "r.yaml:4: loss: duplicate key, first written in line 2"),
    "anchor": ("loss: &a {label_smoothing: 0.1}", "r.yaml:2: loss: anchor &a", "base:"),
    "alias without an anchor": ("data: {root: *a}", "r.yaml:2: data.root: alias *a"),
    "python tag": (
        "data: {root: !!python/object/apply:os.getcwd []}",
        "data.root: tag !!python/object/apply:os.getcwd",
    ),
    "tag": ("data: {workers: !!int '8'}", "data.workers: tag !!int"),
    "own tag": ("loss: !mine {}", "r.yaml:2: loss: tag !mine"),
    "merge key": ("loss: {<<: {label_smoothing: 0.1}}", "loss: merge key '<<'"),
    "base of the wrong type": ("base: 5", "r.yaml:2: base: expected a file name or a list"),
    "empty base": ("base:", "r.yaml:2: base: expected a file name or a list"),
    "missing base": (
        "base: [nowhere.yaml]",
        "r.yaml:2: base: no file nowhere.yaml",
        "relative to the folder of r.yaml",
    ),
    "base with a long name": ("base: " + "x" * 5000, "base: no file xxx"),
    "base with a NUL": ('base: "a\\0b"', "r.yaml:2: base: text with a line break or another control character"),
    "base in a folder that is not there": ("base: nowhere/imagenet.yaml", "base: no file nowhere/imagenet.yaml"),
    "a folder as base": ("base: /", "base: no file /"),
    "itself as base": ("base: r.yaml", "r.yaml:2: base: r.yaml is based on itself: r.yaml -> r.yaml"),
}
# A second `model:` would be a duplicate key; the cases that are about the model bring their own first line.
WHOLE_RECIPES = {
    "no model": ("length: 1ep", "r.yaml: model.name: is missing"),
    "no name": ("model: {num_classes: 2}", "r.yaml: model.name: is missing"),
    "model by a near name": ("model: {name: resnext50}", "r.yaml:1: model.name: ", "did you mean seresnext50?"),
    "model by the paper's name": ("model: {name: SE-ResNeXt-101}", "did you mean seresnext101?"),
    "model by timm's name": ("model: {name: legacy_seresnext26}", "did you mean legacy_seresnext26_32x4d?"),
    "model unlike any": ("model: {name: vit}", "r.yaml:1: model.name: expected one of seresnext26, seresnext50"),
    "too few classes": (
        "model:\n  name: seresnext26\n  num_classes: 1",
        "r.yaml:3: model.num_classes: must be at least 2",
    ),
    "empty file": ("", "r.yaml: is empty"),
    "only comments": ("# nothing\n", "r.yaml: is empty"),
    "null": ("null", "r.yaml:1: is empty"),
    "a list": ("- model", "r.yaml:1: is not a mapping of sections"),
    "text": ("seresnext26", "r.yaml:1: is not a mapping of sections"),
    "two documents": (GOOD + "---\nlength: 1ep\n", "r.yaml:2: a second document begins here"),
    "tab as indentation": ("model:\n\tname: seresnext26", "r.yaml:2: a tab; indent and separate with spaces"),
    "tab as separator": ("model:\n  name:\tseresnext26", "r.yaml:2: a tab; indent and separate with spaces"),
    "bad indentation": ("model:\n  name: seresnext26\n   num_classes: 5", "r.yaml:3: a ':' that cannot be here"),
    "unclosed bracket": ("model: {name: seresnext26\nlength: 1ep", "r.yaml:2: not readable as YAML"),
    "unclosed quote": ("model: {name: 'seresnext26}\n", "not readable as YAML"),
    "list as key": ("[a, b]: 1", "r.yaml:1: a key must be text"),
    "impossible character": ('model: {name: "\\UFFFFFFFF"}', "r.yaml:1: not readable as YAML"),
    "escape character": (GOOD + "# \x1b[31m", "r.yaml:2: character U+001B is not allowed"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), "r.yaml:1: begins with a byte order mark"),
    "UTF-16": (GOOD.encode("utf-16"), "r.yaml:1: begins with a byte order mark"),
    "NUL": (GOOD.encode() + b"\n\0", "r.yaml:3: contains a NUL byte"),
    "Latin-1": (GOOD.encode() + b"# caf\xe9\n", "r.yaml:2: byte 0xe9 is not UTF-8"),
    "over a megabyte": (GOOD + "#" * 1_000_001, "r.yaml: larger than 1,000,000 bytes"),
    "nested deep, flow": ("a: " + "[" * 300_000, "r.yaml:1: nested deeper than 10"),
    "nested deep, block": ("- " * 300_000, "r.yaml:1: nested deeper than 10"),
    "nested deep, mappings": ("\n".join(" " * i + "a:" for i in range(500)), "nested deeper than 10"),
    "a million zeros": (GOOD + "data: {workers: " + "0" * 990_000 + "x}", "r.yaml:2: data.workers: expected a whole"),
    "a hundred thousand values": ("a: [" + "1," * 100_000 + "]", "more than 1000 values"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_value(case: str, problems: Problems) -> None:
    text, *fragments = WRONG_VALUES[case]
    first = "# A comment.\n" if text.startswith("model:") else GOOD
    if text.startswith("model:"):
        text = text.replace("model: {", "model: {name: seresnext26, ")
    found = problems(first + text + "\n")
    assert len(found) == 1, found
    for fragment in ["r.yaml:", *fragments]:
        assert fragment in found[0]


@pytest.mark.parametrize("case", WHOLE_RECIPES)
def test_wrong_file(case: str, problems: Problems) -> None:
    text, *fragments = WHOLE_RECIPES[case]
    start = time.perf_counter()
    found = problems(text)
    assert time.perf_counter() - start < 5
    assert len(found) == 1, found
    for fragment in fragments:
        assert fragment in found[0]
    assert "Traceback" not in found[0]


GOOD_VALUES = {
    "nothing else": "",
    "whole numbers for floats": "optimizer: {lr: 1, momentum: 0, weight_decay: 0}",
    "exponents": "optimizer: {lr: 1e-4, weight_decay: 1E-5}",
    "null where allowed": "model: {weights: null}\nema: null\nmix: {off_after: ~}",
    "quoted words": "data: {root: 'no', train_split: '010', val_split: '12:30'}",
    "yes for true": "optimizer: {nesterov: yes}",
    "empty section": "loss: {}",
    "dates and versions are text": "data: {root: 2026-01-01, val_split: v1.0.0}",
    "a document marker": "--- # one document\nloss: {}",
    "block text of one line": "data:\n  root: >-\n    data/imagenet",
    "unicode": "data: {root: Büilder/写真}",
    "comments and tabs in them": "# a\tb\nloss: {} #\tc",
    "Windows line ends": "loss: {}\r\nlength: 3ep\r\n",
}


@pytest.mark.parametrize("case", GOOD_VALUES)
def test_correct_recipes_have_no_problem(case: str, problems: Problems) -> None:
    text = GOOD_VALUES[case]
    if text.startswith("model:"):
        assert problems(text.replace("model: {", "model: {name: seresnext26, ")) == []
    elif text.startswith("---"):
        assert problems(text + "\n" + GOOD) == []
    else:
        assert problems(GOOD + text) == []


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
    wanted = [
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
    assert len(found) == len(wanted), found
    for problem, beginning in zip(found, wanted, strict=True):
        assert problem.startswith(beginning)


def test_a_wrong_key_causes_no_second_complaint_about_its_consequences(problems: Problems) -> None:
    # momentum is not 0 here but wrong, so whether nesterov agrees with it is unknown.
    found = problems(GOOD + "optimizer: {nesterov: true, momentum: none}\nbatch: {micro_size: many}\n")
    assert [problem.split(": ")[1] for problem in found] == ["optimizer.momentum", "batch.micro_size"]


def test_many_problems_are_cut(problems: Problems) -> None:
    found = problems(GOOD + "".join(f"key{i}: 1\n" for i in range(500)))
    assert len(found) == 101
    assert found[-1] == "and 400 more"


WRONG_OVERRIDES = {
    "no value": ("optimizer.lr", "--set optimizer.lr: write KEY=VALUE"),
    "empty value": ("optimizer.lr=", "write KEY=VALUE", "null for nothing"),
    "empty key": ("=3", "write KEY=VALUE"),
    "unknown key": ("optimizer.learning_rate=3", "--set optimizer.learning_rate=3: ", "did you mean optimizer.lr?"),
    "key without its section": ("lr=3", "unknown key; did you mean optimizer.lr?"),
    "near miss": ("optimiser.lr=3", "did you mean optimizer.lr?"),
    "inside a value": ("length.epochs=3", "length has no keys inside; set it as a whole"),
    "item of a list": ("augment.crop_scale.0=0.1", "augment.crop_scale has no keys inside; set it as a whole"),
    "base": ("base=x.yaml", "belongs in the file of a recipe"),
    "wrong type": ("optimizer.lr=fast", "--set: optimizer.lr: expected a number, found the text 'fast'"),
    "octal": ("data.workers=010", "--set data.workers=010: data.workers: 010 begins with 0"),
    "not YAML": ("model.name=[a", "--set model.name=[a: not readable as YAML"),
    "alias": ("data.root=*a", "--set data.root=*a: data.root: alias *a"),
    "two documents": ("data.root=a\n---\nb", "a second document begins here"),
    "not UTF-8 on the command line": ("data.root=\udcff", "character U+DCFF is not allowed"),
    "batch size": ("batch_size=32", "--set batch_size=32: ", "batch.global_size"),
    "name for a section": ("model=seresnext50", "model: ", "model.name"),
    "number for a section": ("mix=3", "--set: mix: expected a section of keys, found 3"),
    "unknown key in a section": ("ema={decai: 0.9}", "--set: ema.decai: unknown key; did you mean ema.decay?"),
    "a number with a comment": ("optimizer.lr=0.1 # test", "optimizer.lr: ", "'0.1 # test'"),
    "a comment after quotes": ('data.root="a" # b', "--set data.root=", "in quotes"),
}


@pytest.mark.parametrize("case", WRONG_OVERRIDES)
def test_wrong_override(case: str, problems: Problems) -> None:
    override, *fragments = WRONG_OVERRIDES[case]
    found = problems(GOOD, override)
    assert len(found) == 1, found
    for fragment in fragments:
        assert fragment in found[0]


def test_bases_that_go_round(problems: Problems) -> None:
    Path("a.yaml").write_text("base: b.yaml\n")
    Path("b.yaml").write_text("length: 1ep\nbase: a.yaml\n")
    assert problems("base: a.yaml\n" + GOOD) == [
        "b.yaml:2: base: a.yaml is based on itself: r.yaml -> a.yaml -> b.yaml -> a.yaml"
    ]


def test_a_long_chain_of_bases(problems: Problems) -> None:
    for i in range(30):
        Path(f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n")
    assert "more than 20 files deep" in problems("base: 0.yaml\n" + GOOD)[0]


def test_bases_that_fan_out_are_read_once_each(problems: Problems) -> None:
    for i in range(18):
        Path(f"{i}.yaml").write_text(f"base: [{i + 1}.yaml, {i + 1}.yaml]\n")
    Path("18.yaml").write_text("length: 7ep\n")
    start = time.perf_counter()
    assert problems("base: 0.yaml\n" + GOOD) == []
    assert time.perf_counter() - start < 5  # 2^18 reads would take minutes


def test_a_misspelled_base_is_recognised(problems: Problems) -> None:
    Path("_base").mkdir()
    Path("_base/imagenet.yaml").write_text("length: 3ep\n")
    assert "did you mean _base/imagenet.yaml?" in problems("base: _base/imagnet.yaml\n" + GOOD)[0]
    absolute = Path("_base").resolve()
    assert f"did you mean {absolute}/imagenet.yaml?" in problems(f"base: {absolute}/imagnet.yaml\n" + GOOD)[0]


def test_problems_of_a_base_name_its_file(problems: Problems) -> None:
    Path("b.yaml").write_text("# A comment.\noptimizer: {lr: 0}\n")
    assert problems("base: b.yaml\n" + GOOD) == ["b.yaml:2: optimizer.lr: must be above 0, found 0"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(problems: Problems) -> None:
    Path("b.yaml").write_text("length: 3ep\n")
    Path("b.yaml").chmod(0)
    assert problems("base: b.yaml\n" + GOOD) == ["b.yaml: cannot be read: Permission denied"]


# Pieces that YAML gives a meaning to, thrown together.
PIECES = [
    *(
        "model",
        "name",
        "seresnext26",
        "optimizer",
        "lr",
        "base",
        ": ",
        ":",
        "\n",
        "  ",
        "- ",
        "? ",
        ", ",
        "#",
        "<<",
        "~",
    ),
    *("[", "]", "{", "}", "'", '"', "\\", "\\x", "%", "@", "`", "&a ", "*a", "!!int ", "!", "|\n", ">-\n", "0", "1e5"),
    *(".nan", "---\n", "...\n", "\t", "\r", "é", "\x85", "\u2028", "\ufeff", "%YAML 1.1\n", "%TAG ! a\n"),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=100))
def test_no_text_causes_anything_but_problems(text: str, problems: Problems) -> None:
    for problem in problems(text, "optimizer.lr=" + text.replace("\0", "")):
        assert problem
        assert len(problem) < 1000
