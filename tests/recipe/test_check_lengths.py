"""Durations compared with the length of a run and with each other, in one unit and in two."""

from __future__ import annotations

from pathlib import Path

import pytest

from seresnext.errors import RecipeError
from seresnext.recipe import load_recipe, to_values
from seresnext.recipe.check_lengths import check_lengths
from seresnext.recipe.show import to_yaml

MIXED = "mix={{mixup: 0.2, off_after: {}}}"
PROGRESSIVE = "data.progressive={{min_size: 128, end_ramp: {}}}"
KEPT = "checkpoint={{every: 1ep, keep_every: {}}}"

# Overrides of recipes/seresnext50.yaml (100ep): the first unreached duration, the last one that is reached, and the
# effect that the notice states.
UNREACHED = {
    "mix.off_after": (MIXED, "100ep", "99ep", "images are mixed to the end"),
    "schedule.every": ("schedule.every={}", "100ep", "99ep", "the learning rate never falls"),
    "schedule.warmup": ("schedule.warmup={}", "100ep", "99ep", "the learning rate rises to the end"),
    "data.progressive.end_ramp": (PROGRESSIVE, "101ep", "100ep", "images do not grow to their full size"),
    "early_stop.patience": ("early_stop={{patience: {}}}", "100ep", "99ep", "the run cannot end early"),
    "checkpoint.keep_every": (KEPT, "101ep", "100ep", "the setting keeps no checkpoint"),
}


def notices(overrides: list[str], steps_per_epoch: int) -> list[str]:
    return check_lengths(load_recipe("seresnext50", overrides).recipe, steps_per_epoch)


@pytest.mark.parametrize("key", UNREACHED)
def test_unreached_setting_is_a_notice(key: str) -> None:
    setting, late, early, effect = UNREACHED[key]
    assert notices([setting.format(late)], 10) == [
        f"note: {key}, {late}, is not reached within length, 100ep: {effect}"
    ]
    assert notices([setting.format(early)], 10) == []


@pytest.mark.parametrize("key", UNREACHED)
def test_durations_are_compared_in_steps(key: str) -> None:
    """100ep are 1,000 steps if an epoch has 10."""
    setting, late, early, effect = UNREACHED[key]
    late, early = (f"{10 * int(duration.removesuffix('ep'))}st" for duration in (late, early))
    extra = ["checkpoint.every=1st"] if key == "checkpoint.keep_every" else []
    (notice,) = notices([setting.format(late), *extra], 10)
    assert notice == f"note: {key}, {late}, is not reached within length, 100ep: {effect}"
    assert notices([setting.format(late), *extra], 11) == []
    assert notices([setting.format(early), *extra], 10) == []


PAIRS = {
    "ramp that ends before the start": (
        ["data.progressive={{min_size: 128, start_ramp: {}, end_ramp: 60ep}}"],
        ("61ep", "60ep", "601st", "600st"),
        "data.progressive.start_ramp: must not be after data.progressive.end_ramp, 60ep",
    ),
    "patience below the interval": (
        ["early_stop={{patience: {}}}", "evaluation.every=2ep"],
        ("1ep", "2ep", "19st", "20st"),
        "early_stop.patience: must not be shorter than evaluation.every, 2ep",
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs(case: str) -> None:
    settings, (wrong, right, wrong_steps, right_steps), problem = PAIRS[case]
    with pytest.raises(RecipeError, match=problem):
        load_recipe("seresnext50", [setting.format(wrong) for setting in settings])
    load_recipe("seresnext50", [setting.format(right) for setting in settings])
    with pytest.raises(RecipeError, match=problem):
        notices([setting.format(wrong_steps) for setting in settings], 10)
    assert notices([setting.format(right_steps) for setting in settings], 10) == []


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
    assert all(f"is not reached within length, {length}: " in notice for notice in found)


@pytest.mark.parametrize("name", ["seresnext26", "seresnext101_90ep", "seresnext50_strong", "digits", "cifar10"])
def test_published_recipe_has_no_unreached_setting(name: str) -> None:
    assert check_lengths(load_recipe(name).recipe, 22) == []


def test_default_of_a_short_recipe_is_a_notice(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("model: {name: seresnext50}\nlength: 20ep\n")
    (notice,) = check_lengths(load_recipe(tmp_path / "short.yaml").recipe, 10)
    assert notice.startswith("note: schedule.every, 30ep, is not reached within length, 20ep")


@pytest.mark.parametrize("length", ["3st", "4ep"])
def test_stored_recipe_of_a_short_run_loads_again(tmp_path: Path, length: str) -> None:
    first = load_recipe("seresnext50_strong", [f"length={length}"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(to_values(first.recipe)))
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again.recipe == first.recipe
    assert len(check_lengths(again.recipe, 1251)) == 3
