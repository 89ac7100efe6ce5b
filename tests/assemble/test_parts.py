"""Recipes turned into plans, schedules and settled values."""

import pytest
import torch

from seresnext.assemble import parts
from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.models.pretrained import Preprocessing, published_preprocessing
from seresnext.recipe.files import recipe_names
from seresnext.recipe.load import load_recipe
from seresnext.training.loss import BinaryCrossEntropy, CrossEntropy


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_its_model_plan_and_schedule(name):
    recipe = load_recipe(name).recipe
    with torch.device("meta"):
        model, notes = parts.build_model(recipe.model)
    assert model.num_classes == recipe.model.num_classes
    assert notes == []
    plan = parts.build_plan(recipe, steps_per_epoch=10)
    schedule = parts.build_schedule(recipe, plan)
    assert plan.total == recipe.length.steps(10)
    assert 0 < schedule.lr_at(plan.total - 1) <= recipe.optimizer.lr


def test_every_recipe_is_found():
    assert len(recipe_names()) == 5


def test_the_seed_recipe_divides_by_ten_every_thirty_epochs():
    plan = parts.build_plan(load_recipe("seresnext50").recipe, steps_per_epoch=1251)
    schedule = parts.build_schedule(load_recipe("seresnext50").recipe, plan)
    rates = [schedule.lr_at(epoch * 1251) for epoch in (0, 29, 30, 60, 90, 99)]
    assert rates == pytest.approx([0.6, 0.6, 0.06, 0.006, 0.0006, 0.0006])
    assert (plan.total, plan.global_size) == (125_100, 1024)


@pytest.mark.parametrize("name", ["seresnext26", "seresnext50", "seresnext101"])
def test_the_seed_recipes_validate_as_the_published_weights_were(name):
    assert Preprocessing.of_recipe(load_recipe(name).recipe) == published_preprocessing(name)


def test_the_loss_is_that_of_the_recipe():
    assert parts.build_loss(load_recipe("seresnext50").recipe.loss) == CrossEntropy(0.1)
    changes = ["loss={name: bce, label_smoothing: 0, target_threshold: 0.2}", "mix.mixup=0.2"]
    assert parts.build_loss(load_recipe("seresnext50", changes).recipe.loss) == BinaryCrossEntropy(0.0, 0.2)


def test_autos_are_settled_for_the_cpu():
    values, notices = parts.settle_autos(load_recipe("seresnext50").values, {}, World())
    assert values["runtime"]["precision"] == "fp32"
    assert values["runtime"]["compile"] is False
    assert values["evaluation"]["weights"] == "model"
    assert notices == []


def test_autos_keep_what_the_run_settled_before():
    fresh = load_recipe("seresnext50").values
    before = {**fresh, "runtime": {**fresh["runtime"], "precision": "fp64", "compile": False}}
    before["evaluation"] = {**fresh["evaluation"], "weights": "model"}
    values, _ = parts.settle_autos(fresh, before, World())
    assert values["runtime"]["precision"] == "fp64"


def test_what_is_not_auto_is_not_taken_from_before():
    fresh = load_recipe("seresnext50", ["runtime.precision=fp32"]).values
    before = {**fresh, "runtime": {**fresh["runtime"], "precision": "fp64", "compile": False}}
    values, _ = parts.settle_autos(fresh, before, World())
    assert values["runtime"]["precision"] == "fp32"


def test_both_splits_and_the_model_have_the_same_classes(tiny_image_folder):
    root = tiny_image_folder(classes=3)
    good = load_recipe("digits", [f"data.root={root}", "model.num_classes=3"]).recipe
    train, val = parts.open_splits(good)
    assert train.classes == val.classes == ("class_0", "class_1", "class_2")
    with pytest.raises(DataError, match=r"model\.num_classes=3"):
        parts.open_splits(load_recipe("digits", [f"data.root={root}"]).recipe)


def test_synthetic_data_needs_no_files():
    recipe = load_recipe("digits", ["data.format=synthetic", "data.synthetic_images=100"]).recipe
    train, val = parts.open_splits(recipe)
    assert len(train) == len(val) == 100
    assert len(train.classes) == 10


def test_mixing_ends_where_the_recipe_says():
    recipe = load_recipe("digits", ["mix={mixup: 0.2, off_after: 3ep}"]).recipe
    mix = parts.build_mix(recipe, parts.build_plan(recipe, steps_per_epoch=10))
    assert mix is not None
    assert mix.last_step == 30
    assert parts.build_mix(load_recipe("digits").recipe, parts.build_plan(recipe, 10)) is None
