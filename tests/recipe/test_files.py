"""Lookup of recipes by path and by name, and merging with bases. Wrong files: test_errors.py."""

from pathlib import Path

import pytest

from seresnext.durations import Duration
from seresnext.errors import RecipeError
from seresnext.recipe import files, load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
    monkeypatch.setattr(files, "_PACKAGE", package)
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
