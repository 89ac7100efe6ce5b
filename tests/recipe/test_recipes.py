"""Every recipe that is published loads, and says what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from seresnext.durations import Duration
from seresnext.errors import RecipeError
from seresnext.recipe import check_world, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
FOUND = sorted(RECIPES.rglob("*.yaml"))
BASES = [path for path in FOUND if path.parent.name == "_base"]
WHOLE = [path for path in FOUND if path not in BASES]


def test_all_recipes_are_found() -> None:
    assert {path.stem for path in WHOLE} == {
        "cifar10", "digits", "finetune", "seresnext101", "seresnext101_250ep", "seresnext101_90ep",
        "seresnext101_strong", "seresnext26", "seresnext26_strong", "seresnext50", "seresnext50_strong",
    }  # fmt: skip
    assert [path.stem for path in BASES] == ["imagenet", "strong"]


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_a_recipe_loads_by_path_and_by_name(path: Path) -> None:
    assert load_recipe(path).values == load_recipe(path.stem).values


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_a_base_lacks_only_its_model(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["model.name"]


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_a_recipe_names_its_schema_for_editors(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == RECIPES / "schema.json"


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_a_recipe_says_how_to_run_it_and_what_to_expect(path: Path) -> None:
    header = path.read_text().partition("\nmodel:")[0]
    for word in ("Command:", f"train.py --recipe {path.stem}.yaml", "Hardware:", "Time:", "Accuracy:"):
        assert word in header


@pytest.mark.parametrize(
    ("depth", "interpolation"),
    [(26, "bicubic"), (50, "bilinear"), (101, "bilinear")],
)
def test_the_seed_recipes(depth: int, interpolation: str) -> None:
    recipe = load_recipe(f"seresnext{depth}").recipe
    assert recipe.model.name == f"seresnext{depth}"
    assert (recipe.model.num_classes, recipe.model.drop_rate, recipe.model.weights) == (1000, 0.2, None)
    assert (recipe.batch.global_size, recipe.batch.micro_size) == (1024, 128)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.momentum) == ("sgd", 0.6, 0.9)
    assert (recipe.optimizer.nesterov, recipe.optimizer.weight_decay) == (False, 1e-4)
    assert recipe.optimizer.decay_norm_and_bias
    assert recipe.length == Duration(100, "ep")
    assert (recipe.schedule.name, recipe.schedule.every, recipe.schedule.factor) == ("step", Duration(30, "ep"), 0.1)
    assert recipe.schedule.warmup.count == 0
    assert recipe.loss.label_smoothing == 0.1
    assert recipe.data.image_size == 224
    assert recipe.augment.crop_scale == (0.08, 1.0)
    assert recipe.augment.flip == 0.5
    assert recipe.evaluation.crop_pct == 0.875
    assert recipe.augment.interpolation == recipe.evaluation.interpolation == interpolation
    assert (recipe.mix.mixup, recipe.mix.cutmix, recipe.ema) == (0, 0, None)
    for world_size in (1, 2, 4, 8):
        check_world(recipe, world_size)


@pytest.mark.parametrize(("name", "mixup"), [("seresnext101_90ep", 0.0), ("seresnext101_250ep", 0.2)])
def test_the_recipes_in_the_manner_of_nvidia(name: str, mixup: float) -> None:
    """Values of DeepLearningExamples, PyTorch/Classification/ConvNets/configs.yml and se-resnext101-32x4d/training."""
    recipe = load_recipe(name).recipe
    assert str(recipe.length) == name.partition("_")[2]
    optimizer, schedule = recipe.optimizer, recipe.schedule
    assert (optimizer.lr, optimizer.momentum, optimizer.nesterov) == (0.256 * 1024 / 256, 0.875, False)
    assert (optimizer.weight_decay, optimizer.decay_norm_and_bias) == (1 / 16384, False)
    assert (schedule.name, schedule.warmup, schedule.final_lr) == ("cosine", Duration(8, "ep"), 0.0)
    assert (recipe.batch.global_size, recipe.batch.micro_size) == (1024, 128)
    assert (recipe.loss.label_smoothing, recipe.mix.mixup, recipe.mix.cutmix) == (0.1, mixup, 0.0)
    assert (recipe.model.drop_rate, recipe.model.zero_init_last, recipe.ema) == (0.0, False, None)


@pytest.mark.parametrize("depth", [26, 50, 101])
def test_the_strong_recipes(depth: int) -> None:
    recipe = load_recipe(f"seresnext{depth}_strong").recipe
    assert recipe.model.name == f"seresnext{depth}"
    assert recipe.model.zero_init_last
    assert not recipe.optimizer.decay_norm_and_bias
    assert recipe.schedule.name == "cosine"
    assert recipe.schedule.warmup.count > 0
    assert recipe.ema is not None
    assert recipe.mix.mixup > 0
    assert recipe.loss.label_smoothing == 0.1
    assert recipe.mix.off_after == Duration(recipe.length.count - 10, "ep")
    for world_size in (1, 2, 4, 8):
        check_world(recipe, world_size)


def test_the_recipe_for_own_images_starts_from_published_weights() -> None:
    model = load_recipe("finetune").recipe.model
    assert model.weights == "se_resnext50_32x4d-a260b3a4.pth"
    assert model.reset_head


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_small_recipes_run_on_one_process_and_on_two(name: str) -> None:
    recipe = load_recipe(name).recipe
    check_world(recipe, 1)
    check_world(recipe, 2)
    assert recipe.model.num_classes == 10
