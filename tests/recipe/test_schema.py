"""The schema: strict types, and the same names as the tables in the code. Wrong values: test_errors.py."""

import importlib
from functools import reduce
from typing import get_args

import pytest
from pydantic.fields import FieldInfo

from seresnext.recipe import Recipe
from seresnext.recipe.explain import section_of
from seresnext.recipe.schema import (
    ONLY_FOR,
    DataFormat,
    ErasingSection,
    LossName,
    ModelName,
    OptimizerName,
    ScheduleName,
)


@pytest.mark.parametrize(("table", "names"), [
    ("models.registry.MODELS", ModelName), ("training.optimizer.OPTIMIZERS", OptimizerName),
    ("training.schedule.SCHEDULES", ScheduleName), ("training.loss.LOSSES", LossName),
    ("data.formats.READERS", DataFormat),
])  # fmt: skip
def test_names_are_the_names_of_the_table(table: str, names: object) -> None:
    module, _, name = table.rpartition(".")
    found = set(getattr(importlib.import_module(f"seresnext.{module}"), name))
    others = {"MODELS": {"seresnext26", "seresnext50", "seresnext101"}, "READERS": {"synthetic"}}
    assert set(get_args(names)) == found | others.get(name, set())


@pytest.mark.parametrize(("other", "names", "keys"), ONLY_FOR)
def test_limited_keys_and_the_values_exist(other: str, names: str, keys: str) -> None:
    def field(key: str) -> FieldInfo:
        *path, name = key.split(".")
        section = reduce(lambda section, step: section_of(section.model_fields[step].annotation), path, Recipe)
        return section.model_fields[name]

    assert set(names.split()) < set(get_args(field(other).annotation))
    for key in keys.split():
        assert all(f"`{word}`" in str(field(key).description) for word in names.split())


def test_erasing_value_is_a_number_or_random() -> None:
    for value, read in ((1, 1.0), (-2.5, -2.5), ("random", "random")):
        assert ErasingSection.model_validate({"value": value}).value == read
