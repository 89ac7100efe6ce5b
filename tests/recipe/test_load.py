"""Lookup of recipes, bases, overrides, origins, and recipes from plain values. Mistakes: test_errors.py."""

from pathlib import Path

import pytest

from seresnext.durations import Duration
from seresnext.errors import RecipeError
from seresnext.recipe import load, load_recipe, recipe_from_values, to_values
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


ROOT = Path(__file__).parents[2]


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "spelling", ["digits", "digits.yaml", ROOT / "recipes" / "digits", "mine.yaml", "mine", "./mine"]
)
def test_recipe_is_found_by_name_from_any_folder_and_by_path(spelling: str | Path) -> None:
    write("mine.yaml", "model: {name: seresnext26}")
    assert load_recipe(spelling).name == Path(spelling).stem


def test_order_of_lookup() -> None:
    """A path (of a base: relative to the file) comes first, then a name in `./recipes`, then an installed recipe."""
    based = write("mine/mine.yaml", "base: digits\ndata: {root: here}")
    assert load_recipe("digits").recipe.length == load_recipe(based).recipe.length == Duration(8, "ep")
    write("recipes/digits.yaml", "model: {name: seresnext26}\nlength: 77ep")
    assert load_recipe("digits").recipe.length == load_recipe(based).recipe.length == Duration(77, "ep")
    write("digits.yaml", "model: {name: seresnext26}\nlength: 78ep")
    write("mine/digits.yaml", "model: {name: seresnext26}\nlength: 79ep")
    assert load_recipe("digits").recipe.length == Duration(78, "ep")
    assert load_recipe("recipes/digits").recipe.length == Duration(77, "ep")
    assert load_recipe(based).origins["length"] == "mine/digits.yaml:2"
    write("part.yaml", "base: _base/strong.yaml\nmodel: {name: seresnext26}")
    assert load_recipe("part").recipe.length == Duration(120, "ep")


@pytest.mark.parametrize("name", ["./digits", "../digits.yaml", "/digits"])
def test_a_name_that_begins_like_a_path_is_a_path_only(name: str) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(name)


def test_recipes_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has the recipes in the package. A folder `recipes` next to the package is not read."""
    package = tmp_path / "site-packages" / "seresnext"
    write(str(package / "recipes" / "only_here.yaml"), "base: _base/b.yaml\nmodel: {name: seresnext26}")
    write(str(package / "recipes" / "_base" / "b.yaml"), "length: 5ep")
    write(str(package.parent / "recipes" / "of_another_package.yaml"), "model: {name: seresnext26}")
    monkeypatch.setattr(load, "_PACKAGE", package)
    assert load_recipe("only_here").recipe.length == Duration(5, "ep")
    write("recipes/local.yaml", "model: {name: seresnext26}")
    with pytest.raises(RecipeError, match=r"did you mean only_here\? recipes: local, only_here$"):
        load_recipe("only_her")
    with pytest.raises(RecipeError, match="no recipe 'of_another_package'"):
        load_recipe("of_another_package")


@pytest.mark.parametrize("name", ["seresnxt50", "SE-ResNeXt-50", "seresnext50.yml"])
def test_unknown_name_gets_a_near_miss_and_the_list(name: str) -> None:
    message = rf"no recipe '{name}'.*did you mean seresnext50\? recipes: cifar10, digits, finetune, seresnext101, "
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "/dev/zero", "."])
def test_names_that_cannot_be_files(name: str) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(name)
    Path("digits").mkdir()  # A folder does not hide a recipe.
    assert load_recipe("digits").recipe.model.num_classes == 10


def test_bases_are_merged_key_by_key() -> None:
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
    origins = [loaded.origins[f"optimizer.{key}"] for key in ("lr", "momentum", "weight_decay", "nesterov")]
    assert origins == ["_base/one.yaml:1", "_base/two.yaml:1", "mine.yaml:3", "default"]


def test_base_may_have_a_base_and_be_shared() -> None:
    write("a.yaml", "optimizer: {lr: 0.1, momentum: 0.1}")
    write("b.yaml", "base: a.yaml\noptimizer: {lr: 0.2}")
    write("c.yaml", "base: a.yaml\nloss: {label_smoothing: 0.2}")
    # c contains the lr of a, so this lr wins over the lr of b.
    write("mine.yaml", "base: [b.yaml, c.yaml]\nmodel: {name: seresnext26}")
    assert load_recipe("mine.yaml").recipe.optimizer.lr == 0.1
    assert load_recipe("mine.yaml").recipe.loss.label_smoothing == 0.2


def test_null_replaces_a_section_and_a_section_replaces_null() -> None:
    write("on.yaml", "ema: {decay: 0.5}\nmodel: {name: seresnext26}")
    write("off.yaml", "base: on.yaml\nema: null")
    write("again.yaml", "base: off.yaml\nema: {warmup: false}")
    assert load_recipe("off.yaml").recipe.ema is None
    ema = load_recipe("again.yaml").recipe.ema
    assert ema is not None
    assert (ema.decay, ema.warmup) == (0.9999, False)  # The 0.5 was removed by null.
