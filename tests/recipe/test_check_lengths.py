"""Durations beside the length of a run and beside each other, of one unit and of two."""

from __future__ import annotations

from pathlib import Path

import pytest

from seresnext.errors import RecipeError
from seresnext.recipe import load_recipe
from seresnext.recipe.check_lengths import check_lengths, late_keys
from seresnext.recipe.show import to_yaml

MIXED = "mix={{mixup: 0.2, off_after: {}}}"
GROWING = "data.progressive={{min_size: 128, end_ramp: {}}}"
KEPT = "checkpoint={{every: 1ep, keep_every: {}}}"

# Overrides of recipes/seresnext50.yaml (100ep); the duration that comes too late, and the last one that does not; what
# a run with the former does.
LATE = {
    "mix.off_after": (MIXED, "100ep", "99ep", "images are mixed to the end"),
    "schedule.every": ("schedule.every={}", "100ep", "99ep", "the learning rate never falls"),
    "schedule.warmup": ("schedule.warmup={}", "100ep", "99ep", "the learning rate rises to the end"),
    "data.progressive.end_ramp": (GROWING, "101ep", "100ep", "images do not grow to their full size"),
    "early_stop.patience": ("early_stop={{patience: {}}}", "100ep", "99ep", "it cannot end early"),
    "checkpoint.keep_every": (KEPT, "101ep", "100ep", "no checkpoint stays"),
}


@pytest.mark.parametrize("key", LATE)
def test_what_comes_after_the_end_is_refused(key: str) -> None:
    setting, late, early, effect = LATE[key]
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", [setting.format(late)])
    (problem,) = caught.value.problems
    assert problem.startswith(f"--set: {key}: is not reached within length, 100ep, found {late}: {effect}")
    assert list(late_keys(load_recipe("seresnext50", [setting.format(early)]).recipe)) == []


@pytest.mark.parametrize("key", LATE)
def test_the_run_compares_them_in_steps(key: str) -> None:
    """100ep are 1,000 steps of 10 an epoch."""
    setting, late, early, effect = LATE[key]
    late, early = (f"{10 * int(duration.removesuffix('ep'))}st" for duration in (late, early))
    extra = ["checkpoint.every=1st"] if key == "checkpoint.keep_every" else []
    loaded = load_recipe("seresnext50", [setting.format(late), *extra])  # Which cannot know.
    with pytest.raises(RecipeError, match=effect) as caught:
        check_lengths(loaded.recipe, 10, loaded.meant)
    assert len(caught.value.problems) == 1
    assert check_lengths(loaded.recipe, 11, loaded.meant) == []
    loaded = load_recipe("seresnext50", [setting.format(early), *extra])
    assert check_lengths(loaded.recipe, 10, loaded.meant) == []


def test_the_run_tells_all_at_once() -> None:
    durations = [MIXED.format("5000st"), "schedule.warmup=4000st", "early_stop={patience: 3st}", "evaluation.every=2ep"]
    loaded = load_recipe("seresnext50", durations)
    with pytest.raises(RecipeError) as caught:
        check_lengths(loaded.recipe, 10, loaded.meant)
    keys = [problem.partition(":")[0] for problem in caught.value.problems]
    assert keys == ["early_stop.patience", "mix.off_after", "schedule.warmup"]
    assert all("an epoch has 10 steps" in problem for problem in caught.value.problems)


PAIRS = {
    "backward ramp": (
        ["data.progressive={{min_size: 128, start_ramp: {}, end_ramp: 60ep}}"],
        ("61ep", "60ep", "601st", "600st"),
        "data.progressive.start_ramp: must not be after data.progressive.end_ramp, 60ep",
    ),
    "impatient": (
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
    recipe = load_recipe("seresnext50", [setting.format(wrong_steps) for setting in settings]).recipe
    with pytest.raises(RecipeError, match=problem):
        check_lengths(recipe, 10, ())  # Whoever wrote it: no length makes it right.
    recipe = load_recipe("seresnext50", [setting.format(right_steps) for setting in settings]).recipe
    assert check_lengths(recipe, 10, ()) == []


# ------------------------------------------------------------------------------------------------ a shortened run


@pytest.mark.parametrize("length", ["3st", "4ep"])
@pytest.mark.parametrize("name", ["seresnext50", "seresnext101_90ep", "seresnext101_250ep", "seresnext101_strong"])
def test_a_recipe_is_tried_out_by_its_length_alone(name: str, length: str) -> None:
    loaded = load_recipe(name, [f"length={length}"])
    notices = check_lengths(loaded.recipe, 1251, loaded.meant)
    assert [notice.partition(",")[0] for notice in notices] == {
        "seresnext50": ["note: schedule.every"],
        "seresnext101_90ep": ["note: schedule.warmup"],
        "seresnext101_250ep": ["note: schedule.warmup"],
        "seresnext101_strong": ["note: mix.off_after", "note: schedule.warmup", "note: data.progressive.end_ramp"],
    }[name]
    assert all(f"is not reached within length, {length}: " in notice for notice in notices)


@pytest.mark.parametrize("name", ["seresnext26", "seresnext101_90ep", "seresnext50_strong", "digits", "cifar10"])
def test_at_its_own_length_nothing_is_said(name: str) -> None:
    loaded = load_recipe(name)
    assert check_lengths(loaded.recipe, 22, loaded.meant) == []


def test_what_is_on_the_command_line_beside_the_length_is_meant() -> None:
    with pytest.raises(RecipeError, match=r"schedule\.warmup: is not reached within length, 10st, found 10st"):
        load_recipe("seresnext50", ["length=10st", "schedule.warmup=10st"])
    loaded = load_recipe("seresnext50", ["length=10st", "schedule.warmup=1ep"])
    with pytest.raises(RecipeError, match=r"schedule\.warmup"):
        check_lengths(loaded.recipe, 10, loaded.meant)


def test_a_length_in_a_file_is_meant(tmp_path: Path) -> None:
    """Also where the rest is in a base: so somebody trains at a rate that never falls."""
    (tmp_path / "short.yaml").write_text("base: seresnext50.yaml\nlength: 20ep\n")
    (tmp_path / "seresnext50.yaml").write_text("model: {name: seresnext50}\nschedule: {every: 30ep, factor: 0.1}\n")
    with pytest.raises(RecipeError, match=r"seresnext50\.yaml:2: schedule\.every: is not reached within length, 20ep"):
        load_recipe(tmp_path / "short.yaml")


def test_a_default_is_nobodys_wish(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("model: {name: seresnext50}\nlength: 20ep\n")
    loaded = load_recipe(tmp_path / "short.yaml")
    (notice,) = check_lengths(loaded.recipe, 10, loaded.meant)
    assert notice.startswith("note: schedule.every, 30ep, is not reached within length, 20ep")


@pytest.mark.parametrize("length", ["3st", "4ep"])
def test_the_recipe_that_a_short_run_stores_is_tried_out_again(tmp_path: Path, length: str) -> None:
    """All of it stands in one file, the defaults, too."""
    first = load_recipe("seresnext50_strong", [f"length={length}"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(first.values))
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again.values == first.values
    assert len(check_lengths(again.recipe, 1251, again.meant)) == 3
