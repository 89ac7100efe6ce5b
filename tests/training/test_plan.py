"""Lengths in steps, due actions, the end of a run, and the choice of the best validation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from seresnext.evaluation import Evaluation
from seresnext.models.registry import build_model
from seresnext.recipe.load import load_recipe, recipe_names
from seresnext.recipe.schema import EvaluationSection
from seresnext.training.plan import Plan, Progress, build_plan, choose_best, describe_best, describe_end
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


# 8 images of class 0, 2 of class 1. `lazy` always answers class 0; `fair` is right for 5 and 2.
LAZY = Evaluation({"top1": 80.0, "top5": 100.0, "loss": 0.9}, 10, 1.0, counts=np.array([[8, 0], [8, 2], [10, 0]]))
FAIR = Evaluation({"top1": 70.0, "top5": 100.0, "loss": 0.8}, 10, 1.0, counts=np.array([[5, 2], [8, 2], [5, 5]]))


def choose(best, found, step, by):
    return choose_best(best, found, step, EvaluationSection(weights="ema", best_by=by))


@pytest.mark.parametrize(("by", "expected"), [("top1", 1), ("balanced_accuracy", 2), ("macro_f1", 2), ("loss", 2)])
def test_the_measure_decides(by, expected):
    best = choose(choose(None, LAZY, 1, by), FAIR, 2, by)
    assert (best["step"], best["by"], best["weights"]) == (expected, by, "ema")
    assert best[by] == (LAZY if expected == 1 else FAIR).to_dict()[by]
    assert choose(best, FAIR if expected == 2 else LAZY, 3, by) is best  # An equal one is no better one.


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(loss):
    bad = replace(FAIR, metrics={**FAIR.metrics, "loss": loss})
    assert choose(None, bad, 1, "loss") is None
    best = choose(None, LAZY, 1, "loss")
    assert choose(best, bad, 2, "loss") is best
    assert choose(None, bad, 1, "top1")["step"] == 1  # The control.
    assert "loss" not in choose(None, bad, 1, "top1")  # JSON has no NaN.


def test_a_best_of_version_0_1_was_chosen_by_top1():
    old = {"step": 4, "top1": 75.0, "top5": 100.0, "weights": "ema"}
    assert describe_best(old) == "top-1 75.00 %"
    assert choose(old, FAIR, 8, "top1") is old
    assert choose(old, LAZY, 8, "top1")["step"] == 8


def test_the_end_names_the_measure_and_balanced_accuracy_of_unequal_classes():
    labels = np.repeat([0, 1], [8, 2])

    def end(result, by="top1"):
        return describe_end(Progress(step=9, evaluated=9, best=choose(None, result, 9, by)), labels)

    assert end(LAZY) == (
        "best top-1 80.00 %, balanced accuracy 50.00 % after step 9 (ema weights); "
        "the largest class is 80.0 % of the validation images"
    )
    assert end(FAIR, "macro_f1").startswith("best macro F1 67.03 %, top-1 70.00 %, balanced accuracy 81.25 % after")
    assert end(FAIR, "loss").startswith("best loss 0.8000, top-1 70.00 %, balanced accuracy 81.25 % after")
    equal = replace(FAIR, metrics={**FAIR.metrics, "top1": 50.0}, counts=np.array([[3, 2], [5, 5], [6, 4]]))
    assert end(equal).startswith("best top-1 50.00 % after step 9")
    assert describe_end(Progress(), labels) == "not validated"
    assert describe_end(Progress(step=9, evaluated=9), labels) == "there is no best checkpoint"
