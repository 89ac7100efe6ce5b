"""Finding recipes, bases, overrides, origins, and values without a file."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seresnext.durations import Duration
from seresnext.errors import RecipeError, UsageError
from seresnext.recipe import Recipe, load_recipe, recipe_from_values, to_values
from seresnext.recipe.reader import read_scalar, write_scalar

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------ finding


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
    assert "recipes: cifar10, digits, seresnext101, seresnext26, seresnext50" in message


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "/dev/zero", "."])
def test_names_that_cannot_be_files(name: str) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(name)


def test_no_torch_is_imported() -> None:
    code = "import sys, seresnext.recipe, seresnext.recipe.show; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# ------------------------------------------------------------------------------------------------ bases and overrides


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


def test_overrides_win_and_the_last_one_most() -> None:
    loaded = load_recipe("seresnext50", ["optimizer.lr=1e-1", "optimizer.lr=4e-1", "length=3st", "data.root='10'"])
    assert loaded.recipe.optimizer.lr == 0.4
    assert loaded.recipe.length == Duration(3, "st")
    assert loaded.recipe.data.root == "10"
    assert loaded.origins["optimizer.lr"] == loaded.origins["length"] == "--set"
    assert loaded.recipe.optimizer.momentum == 0.9


def test_an_override_may_set_a_whole_section_or_reach_into_an_absent_one() -> None:
    cosine = load_recipe("seresnext50", ["schedule={name: cosine, warmup: 5ep}"]).recipe.schedule
    assert (cosine.name, cosine.every, cosine.factor, cosine.warmup) == ("cosine", None, None, Duration(5, "ep"))
    ema = load_recipe("seresnext50", ["ema.decay=0.9"]).recipe.ema
    assert ema is not None
    assert ema.decay == 0.9
    assert load_recipe("seresnext50", ["ema.decay=0.9", "ema=null"]).recipe.ema is None
    assert load_recipe("seresnext50", ["augment.crop_scale=[0.2, 1]"]).recipe.augment.crop_scale == (0.2, 1.0)


def test_a_value_may_hold_equals_signs() -> None:
    assert load_recipe("seresnext50", ["data.root=/a=b/c"]).recipe.data.root == "/a=b/c"


def test_every_value_has_an_origin() -> None:
    def paths(values: dict, prefix: str = "") -> list[str]:
        return [
            path
            for key, value in values.items()
            for path in (paths(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
        ]

    loaded = load_recipe("seresnext101", ["ema.decay=0.9"])
    assert sorted(loaded.origins) == sorted(paths(loaded.values))
    written = (ROOT / "recipes/seresnext101.yaml").read_text().splitlines()
    line = written.index("  name: seresnext101") + 1
    assert loaded.origins["model.name"] == f"{ROOT}/recipes/seresnext101.yaml:{line}"


# ------------------------------------------------------------------------------------------------ values


def test_values_make_the_same_recipe() -> None:
    loaded = load_recipe("digits")
    assert recipe_from_values(loaded.values, "a checkpoint") == loaded.recipe
    assert to_values(loaded.recipe) == loaded.values


WRONG_STORED = {
    "unknown key": ({"model": {"name": "seresnext26"}, "lr": 1}, "last.safetensors: lr: unknown key"),
    "nothing": ({}, "last.safetensors: model.name: is missing"),
    "wrong type": ({"model": {"name": 5}}, "last.safetensors: model.name: expected one of"),
    "disagreement": ({"model": {"name": "seresnext26", "reset_head": True}}, "last.safetensors: model.reset_head: "),
    "huge": ({"model": {"name": "seresnext26"}, "optimizer": {"lr": 10**400}}, "optimizer.lr: is too large"),
}


@pytest.mark.parametrize("case", WRONG_STORED)
def test_wrong_stored_values(case: str) -> None:
    values, fragment = WRONG_STORED[case]
    with pytest.raises(RecipeError) as caught:
        recipe_from_values(values, "last.safetensors")
    assert len(caught.value.problems) == 1
    assert fragment in caught.value.problems[0]


def test_stored_values_nested_without_end() -> None:
    values: dict = {}
    for _ in range(500):
        values = {"model": values}
    with pytest.raises(RecipeError, match="nested deeper"):
        recipe_from_values(values, "last.safetensors")


def test_a_recipe_is_frozen() -> None:
    recipe = load_recipe("digits").recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.optimizer.lr = 1.0  # type: ignore[misc]
    assert isinstance(recipe, Recipe)


# ------------------------------------------------------------------------------------------------ scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1e4", 1e4), ("1E5", 1e5), ("+1.5e+3", 1500.0), ("-.5", -0.5), ("1.", 1.0), ("01.5", 1.5),
        ("0", 0), ("-7", -7), ("+5", 5), ("true", True), ("Off", False), ("NULL", None), ("~", None), ("", None),
        ("nan", "nan"), ("inf", "inf"), ("e5", "e5"), ("1e", "1e"), ("100ep", "100ep"), ("y", "y"), ("=", "="),
        ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"), ("-", "-"), (".", "."),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    found, complaint = read_scalar(text)
    assert complaint is None
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False))
def test_every_float_is_read_as_it_is_written(value: float) -> None:
    if math.isfinite(value):
        assert read_scalar(write_scalar(value)) == (value, None)


@given(st.integers(0, 10**6), st.integers(-300, 300), st.sampled_from("eE"), st.sampled_from(["", "+"]))
def test_every_exponent_form_is_a_float(digits: int, exponent: int, letter: str, sign: str) -> None:
    text = f"{digits}{letter}{sign if exponent >= 0 else ''}{exponent}"
    value, complaint = read_scalar(text)
    assert type(value) is float
    assert (value, complaint) == (float(text), None)
