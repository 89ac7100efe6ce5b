"""Recipes are found by path and by name, and laid over their bases. What can be wrong about files: test_errors.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from seresnext.durations import Duration
from seresnext.errors import RecipeError, UsageError
from seresnext.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("spelling", ["seresnext50", "seresnext50.yaml", str(ROOT / "recipes" / "seresnext50")])
def test_a_recipe_is_found_by_name_from_any_folder(spelling: str) -> None:
    loaded = load_recipe(spelling)
    assert loaded.name == "seresnext50"
    assert loaded.recipe.model.name == "seresnext50"


@pytest.mark.parametrize("spelling", ["mine.yaml", "mine", "./mine", Path("mine.yaml")])
def test_a_recipe_is_found_by_path(spelling: str | Path) -> None:
    write("mine.yaml", "model: {name: seresnext26}")
    assert load_recipe(spelling).name == "mine"


def test_recipes_here_come_before_those_beside_the_package() -> None:
    write("recipes/digits.yaml", "model: {name: seresnext26}\nlength: 77ep")
    assert load_recipe("digits").recipe.length == Duration(77, "ep")


def test_a_folder_is_no_recipe_and_does_not_hide_one() -> None:
    Path("digits").mkdir()
    assert load_recipe("digits").recipe.model.num_classes == 10


@pytest.mark.parametrize("name", ["seresnxt50", "SE-ResNeXt-50", "seresnext50.yml"])
def test_an_unknown_name_gets_near_misses_and_the_list(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert f"no recipe '{name}'" in message
    assert "did you mean seresnext50?" in message
    assert "recipes: cifar10, digits, finetune, seresnext101, " in message


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "/dev/zero", "."])
def test_names_that_cannot_be_files(name: str) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(name)


def test_bases_are_laid_over_each_other_key_by_key() -> None:
    write("_base/one.yaml", "optimizer: {lr: 0.1, momentum: 0.1, weight_decay: 0.1}\nlength: 1ep\nema: {decay: 0.5}")
    write("_base/two.yaml", "optimizer: {momentum: 0.2, weight_decay: 0.2}\nlength: 2ep")
    write(
        "mine.yaml",
        "base: [_base/one.yaml, _base/two.yaml]\nmodel: {name: seresnext26}\noptimizer: {weight_decay: 0.3}",
    )
    loaded = load_recipe("mine.yaml")
    optimizer = loaded.recipe.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.2, 0.3)
    assert loaded.recipe.length == Duration(2, "ep")
    assert loaded.recipe.ema is not None
    origins = loaded.origins
    assert origins["optimizer.lr"] == "_base/one.yaml:1"
    assert origins["optimizer.momentum"] == "_base/two.yaml:1"
    assert origins["optimizer.weight_decay"] == "mine.yaml:3"
    assert origins["optimizer.nesterov"] == "default"


def test_a_base_may_have_a_base_and_be_shared() -> None:
    write("a.yaml", "optimizer: {lr: 0.1, momentum: 0.1}")
    write("b.yaml", "base: a.yaml\noptimizer: {lr: 0.2}")
    write("c.yaml", "base: a.yaml\nloss: {label_smoothing: 0.2}")
    # c brings a's lr again, so it wins over b's: a file stands for everything it resolves to.
    write("mine.yaml", "base: [b.yaml, c.yaml]\nmodel: {name: seresnext26}")
    assert load_recipe("mine.yaml").recipe.optimizer.lr == 0.1
    assert load_recipe("mine.yaml").recipe.loss.label_smoothing == 0.2


def test_null_takes_a_section_away_and_a_section_takes_null_away() -> None:
    write("on.yaml", "ema: {decay: 0.5}\nmodel: {name: seresnext26}")
    write("off.yaml", "base: on.yaml\nema: null")
    write("again.yaml", "base: off.yaml\nema: {warmup: false}")
    assert load_recipe("off.yaml").recipe.ema is None
    ema = load_recipe("again.yaml").recipe.ema
    assert ema is not None
    assert (ema.decay, ema.warmup) == (0.9999, False)  # not the 0.5 that was taken away
