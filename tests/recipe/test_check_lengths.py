"""Durations compared with the length of a run and with each other, in one unit and in two."""

import pytest

from seresnext.errors import RecipeError
from seresnext.recipe import load_recipe
from seresnext.recipe.check import check_lengths

MIXED = "mix={{mixup: 0.2, off_after: {}}}"
PROGRESSIVE = "data.progressive={{min_size: 128, end_ramp: {}}}"
FROZEN = "model={{name: seresnext50, weights: w.pth, frozen: [layer0], frozen_until: {}}}"
KEPT = "checkpoint={{every: 1ep, keep_every: {}}}"

# Overrides of recipes/seresnext50.yaml (100ep): the first unreached duration, the last one that is reached, and the
# effect that the notice states.
UNREACHED = {
    "mix.off_after": (MIXED, "100ep", "99ep", "images are mixed to the end"),
    "model.frozen_until": (FROZEN, "100ep", "99ep", "the stages of model.frozen do not train"),
    "schedule.every": ("schedule.every={}", "100ep", "99ep", "the learning rate never falls"),
    "schedule.warmup": ("schedule.warmup={}", "100ep", "99ep", "the learning rate rises to the end"),
    "data.progressive.end_ramp": (PROGRESSIVE, "101ep", "100ep", "images do not grow to their full size"),
    "early_stop.patience": ("early_stop={{patience: {}}}", "100ep", "99ep", "the run cannot end early"),
    "checkpoint.keep_every": (KEPT, "101ep", "100ep", "the setting keeps no checkpoint"),
}


def notices(overrides: list[str], steps_per_epoch: int) -> list[str]:
    return check_lengths(load_recipe("seresnext50", overrides).recipe, steps_per_epoch)


@pytest.mark.parametrize("unit", ["ep", "st"])
@pytest.mark.parametrize("key", UNREACHED)
def test_unreached_setting_is_a_notice(key: str, unit: str) -> None:
    """100ep are 1,000 steps if an epoch has 10, and 1,100 if an epoch has 11."""
    setting, late, early, effect = UNREACHED[key]
    extra = []
    if unit == "st":
        late, early = late.replace("ep", "0st"), early.replace("ep", "0st")
        extra = ["checkpoint.every=1st"] if key == "checkpoint.keep_every" else []
        assert notices([setting.format(late), *extra], 11) == []
    notice = f"note: {key}, {late}, is not reached within length, 100ep: {effect}"
    assert notices([setting.format(late), *extra], 10) == [notice]
    assert notices([setting.format(early), *extra], 10) == []


RAMP = "data.progressive={{min_size: 128, start_ramp: {}, end_ramp: 60ep}}"


@pytest.mark.parametrize(("setting", "wrong", "right", "problem"), [
    (RAMP, "61ep", "60ep", "data.progressive.start_ramp: must not be after data.progressive.end_ramp, 60ep"),
    (RAMP, "601st", "600st", "data.progressive.start_ramp: must not be after data.progressive.end_ramp, 60ep"),
    ("early_stop={{patience: {}}}", "1ep", "2ep", "patience: must not be shorter than evaluation.every, 2ep"),
    ("early_stop={{patience: {}}}", "19st", "20st", "patience: must not be shorter than evaluation.every, 2ep"),
])  # fmt: skip
def test_pairs(setting: str, wrong: str, right: str, problem: str) -> None:
    """Durations in one unit are compared when the recipe is read, and durations in two units by the run."""
    with pytest.raises(RecipeError, match=problem) as caught:
        notices([setting.format(wrong), "evaluation.every=2ep"], 10)
    assert ("an epoch has 10 steps" in str(caught.value)) == wrong.endswith("st")
    assert notices([setting.format(right), "evaluation.every=2ep"], 10) == []


def test_all_problems_come_at_once() -> None:
    durations = [PROGRESSIVE.format("3st, start_ramp: 5ep"), "early_stop={patience: 3st}"]
    with pytest.raises(RecipeError) as caught:
        notices(durations, 10)
    keys = [problem.partition(":")[0] for problem in caught.value.problems]
    assert keys == ["data.progressive.start_ramp", "early_stop.patience"]
    assert all("an epoch has 10 steps" in problem for problem in caught.value.problems)


@pytest.mark.parametrize("length", ["3st", "4ep"])
@pytest.mark.parametrize("name", ["seresnext50", "seresnext101_90ep", "seresnext101_250ep", "seresnext101_strong"])
def test_any_recipe_can_be_shortened(name: str, length: str) -> None:
    found = check_lengths(load_recipe(name, [f"length={length}"]).recipe, 1251)
    assert [notice.partition(",")[0] for notice in found] == {
        "seresnext50": ["note: schedule.every"],
        "seresnext101_90ep": ["note: schedule.warmup"],
        "seresnext101_250ep": ["note: schedule.warmup"],
        "seresnext101_strong": ["note: mix.off_after", "note: schedule.warmup", "note: data.progressive.end_ramp"],
    }[name]
    assert check_lengths(load_recipe(name).recipe, 1251) == []  # Control.
