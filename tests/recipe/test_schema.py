"""The schema: strict types, defaults, and the same names as the tables in the code."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import get_args

import pytest
from pydantic import ValidationError

from seresnext.durations import Duration
from seresnext.recipe import Recipe, load_recipe, to_values
from seresnext.recipe.explain import section_of
from seresnext.recipe.schema import (
    ONLY_FOR,
    DataFormat,
    ErasingSection,
    LossName,
    ModelName,
    OptimizerName,
    OptimizerSection,
    RuntimeSection,
    ScheduleName,
)


def test_defaults() -> None:
    values = to_values(Recipe.model_validate({"model": {"name": "seresnext101"}}))
    wanted = {
        "model": {"name": "seresnext101", "num_classes": 1000, "drop_rate": 0.2, "weights": None, "reset_head": False},
        "data": {"root": "data/imagenet", "format": "folder", "image_size": 224, "workers": 8, "on_error": "raise"},
        "mix": {"mixup": 0.0, "cutmix": 0.0, "off_after": None},
        "batch": {"global_size": 1024, "micro_size": 128},
        "optimizer": {
            "name": "sgd", "lr": 0.6, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4,
            "decay_norm_and_bias": True, "clip_norm": None, "betas": [0.9, 0.999], "eps": 1e-8,
        },
        "schedule": {"name": "step", "every": "30ep", "factor": 0.1, "warmup": "0ep"},
        "loss": {"label_smoothing": 0.1},
        "evaluation": {"every": "1ep"},
        "checkpoint": {"every": "1ep", "keep": 3, "on_failure": "stop"},
        "logging": {"every": "50st"},
        "runtime": {
            "seed": 0, "precision": "auto", "compile": "auto", "channels_last": True, "deterministic": False,
        },
    }  # fmt: skip
    for section, keys in wanted.items():
        assert values[section] | keys == values[section]
    assert values["length"] == "100ep"
    assert values["ema"] is None


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("models.registry.MODELS", ModelName),
        ("training.optimizer.OPTIMIZERS", OptimizerName),
        ("training.schedule.SCHEDULES", ScheduleName),
        ("training.loss.LOSSES", LossName),
        ("data.formats.READERS", DataFormat),
    ],
)
def test_names_are_the_names_of_the_table(table: str, names: object) -> None:
    module, _, name = table.rpartition(".")
    found = set(getattr(importlib.import_module(f"seresnext.{module}"), name))
    others = {"MODELS": {"seresnext26", "seresnext50", "seresnext101"}, "READERS": {"synthetic"}}
    assert set(get_args(names)) == found | others.get(name, set())


@pytest.mark.parametrize("key", ONLY_FOR)
def test_limited_key_and_its_values_exist(key: str) -> None:
    other, names, example = ONLY_FOR[key]
    path, _, name = key.rpartition(".")
    section = reduce(lambda section, step: section_of(section.model_fields[step].annotation), path.split("."), Recipe)
    assert set(names.split()) < set(get_args(section.model_fields[other].annotation))
    field = section.model_fields[name]
    assert example is None or field.default is None
    assert all(f"`{word}`" in field.description for word in names.split())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", "0.1"),
        ("lr", True),
        ("lr", float("inf")),
        ("nesterov", 1),
        ("name", "SGD"),
        ("clip_norm", 0),
        ("typo", 1),
    ],
)
def test_strictness(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        OptimizerSection.model_validate({key: value})


def test_int_is_accepted_as_a_float() -> None:
    lr = OptimizerSection.model_validate({"lr": 1}).lr
    assert type(lr) is float


@pytest.mark.parametrize("value", ["auto", True, False])
def test_compile_takes_three_values(value: object) -> None:
    assert RuntimeSection.model_validate({"compile": value}).compile is value


@pytest.mark.parametrize("value", [1, 0, 1.0, "true", None])
def test_compile_takes_no_other_value(value: object) -> None:
    with pytest.raises(ValidationError):
        RuntimeSection.model_validate({"compile": value})


def test_duration_is_text_in_plain_values() -> None:
    recipe = load_recipe("digits", ["length=12st"]).recipe
    assert recipe.length == Duration(12, "st")
    assert to_values(recipe)["length"] == "12st"


def test_a_recipe_is_frozen() -> None:
    recipe = load_recipe("digits").recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.optimizer.lr = 1.0  # type: ignore[misc]
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize(("value", "read"), [(1, 1.0), (-2.5, -2.5), ("random", "random")])
def test_erasing_value_is_a_number_or_random(value: object, read: object) -> None:
    assert ErasingSection.model_validate({"value": value}).value == read


@pytest.mark.parametrize("value", ["noise", True, None, float("nan"), [0, 0, 0]])
def test_wrong_erasing_value(value: object) -> None:
    with pytest.raises(ValidationError, match="number or 'random'"):
        ErasingSection.model_validate({"value": value})
