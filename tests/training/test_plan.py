"""Lengths in steps, due actions, and the end of a run."""

import pytest
import torch

from seresnext.models.registry import build_model
from seresnext.recipe.files import recipe_names
from seresnext.recipe.load import load_recipe
from seresnext.training.plan import Plan, Progress, build_plan
from seresnext.training.schedule import build_schedule


def test_a_run_is_complete_at_an_early_end_and_not_before():
    plan = Plan(20, 4, 1, 2, 2, 6, patience=4)
    best = {"step": 4, "top1": 1.0}
    assert plan.is_complete(Progress(step=8, evaluated=8, best=best))
    assert not plan.is_complete(Progress(step=6, evaluated=6, best=best))
    assert not plan.is_complete(Progress(step=8, evaluated=6, best=best))
    assert not plan.is_complete(Progress(step=20, evaluated=18, best={"step": 18}))
    assert not plan.is_complete(Progress(step=2, evaluated=2, best=None))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_its_model_plan_and_schedule(name):
    recipe = load_recipe(name).recipe
    with torch.device("meta"):
        model = build_model(recipe.model)
    assert model.num_classes == recipe.model.num_classes
    plan = build_plan(recipe, steps_per_epoch=10)
    schedule = build_schedule(recipe, plan)
    assert plan.total == recipe.length.steps(10)
    assert 0 < schedule.lr_at(plan.total - 1) <= recipe.optimizer.lr
