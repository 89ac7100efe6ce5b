"""Overrides, origins, and recipes from plain values. Mistakes: test_errors.py."""

from pathlib import Path

import pytest

from seresnext.durations import Duration
from seresnext.errors import RecipeError
from seresnext.recipe import load_recipe, recipe_from_values, to_values
from seresnext.recipe.reader import write_scalar


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_overrides_win_and_the_last_one_wins() -> None:
    loaded = load_recipe("seresnext50", ["optimizer.lr=1e-1", "optimizer.lr=4e-1", "length=3st", "data.root='10'"])
    assert loaded.recipe.optimizer.lr == 0.4
    assert loaded.recipe.length == Duration(3, "st")
    assert loaded.recipe.data.root == "10"
    assert loaded.origins["optimizer.lr"] == loaded.origins["length"] == "--set"
    assert loaded.recipe.optimizer.momentum == 0.9


def test_override_of_a_section_and_of_a_key_in_an_absent_section() -> None:
    cosine = load_recipe("seresnext50", ["schedule={name: cosine, warmup: 5ep}"]).recipe.schedule
    assert (cosine.name, cosine.every, cosine.factor, cosine.warmup) == ("cosine", None, None, Duration(5, "ep"))
    ema = load_recipe("seresnext50", ["ema.decay=0.9"]).recipe.ema
    assert ema is not None
    assert ema.decay == 0.9
    assert load_recipe("seresnext50", ["ema.decay=0.9", "ema=null"]).recipe.ema is None
    assert load_recipe("seresnext50", ["augment.crop_scale=[0.2, 1]"]).recipe.augment.crop_scale == (0.2, 1.0)


@pytest.mark.parametrize("text", ["runs/best #2.pth", "#1", "photos # of 2026/", "/a=b/c"])
def test_a_value_may_hold_number_signs_and_equals_signs(text: str) -> None:
    assert load_recipe("seresnext50", [f"data.root={text}"]).recipe.data.root == text
    assert load_recipe("seresnext50", [f"data.root={write_scalar(text)}"]).recipe.data.root == text  # --data does this.


def test_the_home_folder_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "house"))
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "base.yaml").write_text("model: {name: seresnext26, weights: ~/w.pth}\ndata: {cache: ~}\n")
    (tmp_path / "mine.yaml").write_text("base: ~/base.yaml\ndata:\n  root: ~/photos\n  train_split: ~x\n")
    loaded = load_recipe("mine.yaml")
    assert loaded.recipe.model.weights == f"{tmp_path}/house/w.pth"
    assert loaded.recipe.data.root == f"{tmp_path}/house/photos"
    assert loaded.origins["data.root"] == "mine.yaml:3"
    assert (loaded.recipe.data.cache, loaded.recipe.data.train_split) == (None, "~x")
    assert load_recipe("~/base", ["data.cache='~/c'"]).recipe.data.cache == f"{tmp_path}/house/c"
    for root in ("a/~", "./~", "~nobody-of-this-name/a"):
        assert load_recipe("mine.yaml", [f"data.root={root}"]).recipe.data.root == root


def test_removed_keys_are_dropped_from_a_saved_recipe() -> None:
    recipe = load_recipe("digits").recipe
    values = to_values(recipe)
    old = {**values, "runtime": {**values["runtime"], "measure": True, "bucket_mb": 13.0}}
    old["data"] = {**values["data"], "cache_size": 50.0}
    assert recipe_from_values(old, "a checkpoint") == recipe
    assert old["runtime"]["measure"]  # The caller's values do not change.


GOOD = {"model": {"name": "seresnext26"}}
WRONG_STORED = [
    ({"model": {"name": "seresnext26", "num_classes": "auto"}}, "last.safetensors: model.num_classes: is auto, and"),
    (GOOD | {"lr": 1}, "last.safetensors: lr: unknown key"),
    ({}, "last.safetensors: model.name: is missing"),
    ({"model": {"name": 5}}, "last.safetensors: model.name: must be 'seresnext26', "),
    (GOOD | {"runtime": [1]}, "runtime: must be a section of keys"),
    ({"model": {"name": "seresnext26", "frozen": ["layer0"]}}, "last.safetensors: model.frozen: needs model.weights"),
    (GOOD | {"optimizer": {"lr": 10**400}}, "optimizer.lr: must be a number, found the text '1000"),
    *[
        (GOOD | {"model": {key: 1}}, "last.safetensors: a key must be text without control")
        for key in ("\ud800", "\x1b")
    ],
    *[(GOOD | {"data": {"root": text}}, "data.root: ") for text in ("a\nb", "\x1b[2J", "\x00", "\ud800", "x" * 4097)],
    (GOOD | {"data": {"mean": [0.5] * 1000}}, "more than 1000 values"),
]


@pytest.mark.parametrize(("values", "part"), WRONG_STORED, ids=lambda value: ascii(value)[:40])
def test_wrong_stored_values(values: dict, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_values(values, "last.safetensors")
    (problem,) = caught.value.problems
    assert part in problem
    assert problem.isprintable()


@pytest.mark.parametrize("depth", [20, 100_000])
def test_stored_values_are_not_deep(depth: int) -> None:
    values: dict = {}
    for _ in range(depth):
        values = {"model": values}
    with pytest.raises(RecipeError, match="nested deeper"):
        recipe_from_values(values, "last.safetensors")
