"""Advice on batch sizes: every check accepts each advice, alone and with all others."""

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seresnext.data.order import Order
from seresnext.errors import RecipeError
from seresnext.recipe import Recipe, check_world, recipe_from_values
from seresnext.recipe.check import fitting_batch

BATCHES = st.fixed_dictionaries(
    {
        "global_size": st.integers(1, 200),
        "micro_size": st.integers(1, 70),
        "repeats": st.sampled_from([1, 1, 1, 2, 3, 7]),
        "mixup": st.sampled_from([0.0, 0.2]),
        "image_size": st.sampled_from([32, 64]),
    }
)


def with_multiple(sizes: dict[str, int]) -> dict[str, int]:
    return sizes | {"global_size": math.lcm(sizes["micro_size"], sizes["repeats"]) * (1 + sizes["global_size"] % 5)}


VALID_BATCHES = BATCHES.map(with_multiple).filter(lambda sizes: not problems_of(sizes))


def changed(values: dict[str, object], settings: str) -> dict[str, object]:
    """Return the values with settings such as `batch.global_size=8 and batch.micro_size=2`."""
    return values | {key.partition(".")[2]: int(value) for key, value in re.findall(r"([a-z_.]+)=(\d+)", settings)}


def recipe_of(sizes: dict[str, object]) -> Recipe:
    values = {
        "model": {"name": "seresnext26"},
        "batch": {key: sizes[key] for key in ("global_size", "micro_size")},
        "augment": {"repeats": sizes.get("repeats", 1)},
        "mix": {"mixup": sizes.get("mixup", 0.0)},
        "data": {"image_size": sizes.get("image_size", 64)},
    }
    return recipe_from_values(values, "test")


def problems_of(sizes: dict[str, object]) -> list[str]:
    try:
        recipe_of(sizes)
    except RecipeError as error:
        return error.problems
    return []


@settings(max_examples=100)
@given(sizes=BATCHES)
def test_advice_on_sizes_is_accepted(sizes: dict[str, object]) -> None:
    """One advice solves all problems of the sizes."""
    for problem in problems_of(sizes):
        settings = re.findall(r"batch\.[a-z_]+=\d+(?: and batch\.[a-z_]+=\d+)*", problem)
        assert len(settings) == 1, problem
        assert problems_of(changed(sizes, settings[0])) == [], problem


@pytest.mark.parametrize(("micro", "mixup", "image_size"), [(1, 0.2, 64), (1, 0.0, 32)])
def test_advice_if_no_batch_fits_the_repeats(micro: int, mixup: float, image_size: int) -> None:
    """The smallest common multiple with two or more images is above the largest global batch."""
    sizes = {"global_size": 63, "micro_size": micro, "mixup": mixup, "image_size": image_size, "repeats": 9_999_999}
    advice = {problem.rpartition("; write ")[2].removesuffix(", or mix.mixup=0") for problem in problems_of(sizes)}
    assert advice == {"batch.micro_size=2 and a smaller augment.repeats"}
    assert problems_of(sizes | {"global_size": 64, "micro_size": 2, "repeats": 1}) == []


@settings(max_examples=150)
@given(sizes=VALID_BATCHES, world_size=st.integers(1, 9), num_images=st.none() | st.integers(1, 300))
def test_advice_of_check_world_is_accepted(sizes: dict[str, object], world_size: int, num_images: int | None) -> None:
    try:
        check_world(recipe_of(sizes), world_size, num_images)
        assert sizes["global_size"] % (sizes["micro_size"] * world_size) == 0
        return
    except RecipeError as error:
        advice = str(error)
    choices = [changed(sizes, choice) for choice in re.findall(r"set (batch[^,]*)", advice)]
    for choice in choices:
        assert problems_of(choice) == []
        check_world(recipe_of(choice), world_size)
        assert num_images is None or choice["global_size"] <= num_images
    assert choices or num_images is not None
    for count in re.findall(r"\d+", advice.partition("start ")[2].partition(" processes")[0]):
        check_world(recipe_of(sizes), int(count))


@settings(max_examples=150)
@given(sizes=VALID_BATCHES, world_size=st.integers(1, 9), num_images=st.integers(1, 300))
def test_fitting_batch_is_found_if_one_exists(sizes: dict[str, object], world_size: int, num_images: int) -> None:
    found = fitting_batch(recipe_of(sizes), world_size, num_images)
    if found is None:
        pairs = itertools.product(range(1, num_images + 1), (1, 2))
        fitting = [(total, micro) for total, micro in pairs if total % (micro * world_size) == 0]
        assert all(problems_of(sizes | {"global_size": total, "micro_size": micro}) for total, micro in fitting)
    else:
        choice = sizes | {key.partition(".")[2]: value for key, value in found.items()}
        assert problems_of(choice) == []
        check_world(recipe_of(choice), world_size)
        assert choice["global_size"] <= num_images
        order = Order(num_images, choice["global_size"], choice["micro_size"], 0, choice["repeats"])
        assert order.steps_per_epoch > 0


@pytest.mark.parametrize(("micro", "world_size", "num_images", "pair"), [
    (32, 1, 55, (32, 32)), (32, 2, 55, (32, 16)), (32, 4, 55, (32, 8)), (32, 1, 5, (4, 4)), (32, 8, 7, None),
    (32, 1, 1000, (64, 32)), (64, 1, 55, (32, 32)),
])  # fmt: skip
def test_batches_for_few_images(micro: int, world_size: int, num_images: int, pair: tuple[int, int] | None) -> None:
    found = fitting_batch(recipe_of({"global_size": 64, "micro_size": micro}), world_size, num_images)
    assert (found and (found["batch.global_size"], found["batch.micro_size"])) == pair
