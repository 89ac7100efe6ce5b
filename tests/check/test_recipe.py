"""The rules for recipes: each has a good and a bad recipe, and the recipes of the project break none."""

import re
from pathlib import Path

import pytest

from seresnext.check.recipe import check_recipe
from seresnext.recipe.load import load_recipe
from seresnext.training.plan import build_plan

IMAGES = {"digits": 1437, "cifar10": 5000, "finetune": 10_000}
RECIPES = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def findings(name, *settings, steps_per_epoch=None):
    recipe = load_recipe(name, settings).recipe
    steps = steps_per_epoch or IMAGES.get(name, 1_281_167) // recipe.batch.global_size
    return {finding.name: finding for finding in check_recipe(recipe, build_plan(recipe, steps))}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_project_break_no_rule(name):
    found = findings(name)
    assert [finding for finding in found.values() if finding.verdict != "ok"] == []
    assert all(finding.source for finding in found.values())
    assert len(found) >= 6


ADAMW = ("optimizer={name: adamw, lr: 0.001, weight_decay: 0.05, decay_norm_and_bias: false}", "schedule.warmup=5ep")
EMA = ("ema={decay: 0.9999, warmup: false}",)
# The rule; settings that the rule accepts; settings that the rule reports; words of the fix.
CASES = {
    "rate too high": ("learning rate", ["optimizer.lr=1.5"], ["optimizer.lr=1.7"], "optimizer.lr=0.4"),
    "rate too low": ("learning rate", ["optimizer.lr=0.11"], ["optimizer.lr=0.09"], "optimizer.lr=0.4"),
    "rate for the momentum": (
        "learning rate", ["optimizer.lr=0.05", "optimizer.momentum=0.98"],
        ["optimizer.lr=0.6", "optimizer.momentum=0.98"], "optimizer.lr=0.08",
    ),
    "rate for the batch": ("learning rate", [], ["batch.global_size=128"], "optimizer.lr=0.05"),
    "rate of AdamW": ("learning rate", ADAMW, [*ADAMW, "optimizer.lr=0.1"], "optimizer.lr=0.001"),
    "warm-up": (
        "batch and warm-up", ["batch.global_size=2048", "schedule.warmup=5ep"], ["batch.global_size=2048"], "=5ep",
    ),
    "warm-up of AdamW": ("batch and warm-up", ADAMW, [*ADAMW, "schedule.warmup=0ep"], "warmup=5ep"),
    "batch": (
        "batch and warm-up", ["batch.global_size=8192", "schedule.warmup=5ep"],
        ["batch.global_size=16384", "schedule.warmup=5ep"], "global_size=8192",
    ),
    "decay after the end": ("schedule", ["schedule.every=30ep"], ["schedule.every=100ep"], "schedule.every"),
    "decay too weak": ("schedule", ["schedule.factor=0.3"], ["schedule.factor=0.5"], "name: cosine"),
    "unreached": (
        "schedule", ["checkpoint.keep_every=90ep"], ["checkpoint.keep_every=101ep"], "shorten these settings",
    ),
    "long warm-up": ("schedule", ["schedule.warmup=20ep"], ["schedule.warmup=21ep"], "schedule.warmup"),
    "decay of SGD": ("weight decay", ["optimizer.weight_decay=1e-3"], ["optimizer.weight_decay=2e-3"], "1e-4"),
    "decay of AdamW": ("weight decay", ADAMW, [*ADAMW, "optimizer.weight_decay=1e-4"], "0.05"),
    "decay of norms": ("weight decay", ADAMW, [*ADAMW, "optimizer.decay_norm_and_bias=true"], "decay_norm_and_bias"),
    "EMA": ("EMA", [*EMA, "length=40ep"], [*EMA, "length=30ep"], "ema.decay=0.999"),
    "small BatchNorm": ("BatchNorm", ["batch.micro_size=16"], ["batch.micro_size=8"], "batch.micro_size=16"),
    "short and strong": (
        "augmentation", ["length=30ep", "mix={mixup: 0.2, cutmix: 1.0}", "augment.erasing={}", "schedule.every=8ep"],
        ["length=29ep", "mix={mixup: 0.2, cutmix: 1.0}", "augment.erasing={}", "schedule.every=8ep"], "length=30ep",
    ),
    "long and weak": ("augmentation", ["length=200ep", "mix.mixup=0.2"], ["length=200ep"], "mix.mixup"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_rule_accepts_a_good_and_reports_a_bad_recipe(case):
    name, good, bad, words = CASES[case]
    assert findings("seresnext50", *good)[name].verdict == "ok"
    found = findings("seresnext50", *bad)[name]
    assert found.verdict == "warning"
    assert words in found.fix
    assert found.source
    if setting := re.search(r"set '?([\w.]+=(?:{.*?}|[\w.-]+))", found.fix):
        assert findings("seresnext50", *bad, setting[1])[name].verdict == "ok"


def test_the_share_of_old_weights_is_that_of_a_real_average():
    """The oracle averages a value that is 1 in the first half of the run, and 0 in the second."""
    average, total, decay = 1.0, 400, 0.99
    for step in range(total):
        average = decay * average + (1 - decay) * (step < total // 2)
    settings = ("ema={decay: 0.99, warmup: false}", "length=400st", "schedule.every=100st")
    assert f"{average:.1%}" in findings("seresnext50", *settings)["EMA"].measured


def test_a_recipe_without_average_or_with_a_frozen_network_has_no_such_finding():
    stages = "[layer0, layer1, layer2, layer3, layer4]"
    frozen = findings("finetune", f"model.frozen={stages}", "batch.micro_size=8")
    assert {"EMA", "BatchNorm"} & frozen.keys() == set()
    assert "BatchNorm" in findings("finetune")


def test_fine_tuning_may_have_a_low_rate():
    assert findings("finetune", "optimizer.lr=1e-5")["learning rate"].verdict == "ok"
    assert findings("finetune", "optimizer.lr=1")["learning rate"].verdict == "warning"
