"""Recipes turned into plans, schedules and settled values."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from seresnext.data.augment.erase import EraseFill, build_erase_fill
from seresnext.data.augment.mixup import build_mixup_cutmix
from seresnext.data.augment.progressive import ImageSizeSchedule, build_image_size_schedule
from seresnext.data.loading.loader import train_keys
from seresnext.data.order import Order
from seresnext.data.pipeline import train_source
from seresnext.data.readers.class_labels import has_other_labels
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError
from seresnext.models.pretrained import Preprocessing, load_first_weights, published_preprocessing
from seresnext.models.registry import build_model
from seresnext.recipe.files import recipe_names
from seresnext.recipe.load import load_recipe
from seresnext.run.assemble import resolve_auto
from seresnext.run.opening import open_splits
from seresnext.runtime import PRECISIONS
from seresnext.training.loss import BinaryCrossEntropy, CrossEntropy, build_loss
from seresnext.training.plan import build_plan
from seresnext.training.schedule import build_schedule


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_its_model_plan_and_schedule(name):
    recipe = load_recipe(name).recipe
    with torch.device("meta"):
        model = build_model(recipe.model)
    assert model.num_classes == recipe.model.num_classes
    plan = build_plan(recipe, steps_per_epoch=10)
    schedule = build_schedule(recipe, plan)
    assert plan.total == recipe.length.steps(10)
    assert 0 < schedule.lr_at(plan.total - 1) <= recipe.optimizer.lr


def test_every_recipe_is_found():
    assert len(recipe_names()) == 11


def test_the_seed_recipe_divides_by_ten_every_thirty_epochs():
    plan = build_plan(load_recipe("seresnext50").recipe, steps_per_epoch=1251)
    schedule = build_schedule(load_recipe("seresnext50").recipe, plan)
    rates = [schedule.lr_at(epoch * 1251) for epoch in (0, 29, 30, 60, 90, 99)]
    assert rates == pytest.approx([0.6, 0.6, 0.06, 0.006, 0.0006, 0.0006])
    assert (plan.total, plan.global_size) == (125_100, 1024)


@pytest.mark.parametrize("name", ["seresnext26", "seresnext50", "seresnext101"])
def test_the_seed_recipes_validate_as_the_published_weights_were(name):
    assert Preprocessing.of_recipe(load_recipe(name).recipe) == published_preprocessing(name)


def test_gradient_checkpointing_is_eager(monkeypatch):
    """Also where `auto` would compile, or did so before."""
    monkeypatch.setattr(
        "seresnext.run.assemble.resolve_compile", lambda requested, device: (requested in (True, "auto"), None)
    )
    plain = load_recipe("seresnext50").values
    assert resolve_auto(plain, {}, World())[0]["runtime"]["compile"] is True
    values = load_recipe("seresnext50", ["runtime.grad_checkpointing=true"]).values
    before = {**plain, "runtime": {**plain["runtime"], "compile": True, "precision": "fp32"}}
    for settled in ({}, before):
        assert resolve_auto(values, settled, World())[0]["runtime"]["compile"] is False


def test_the_loss_is_that_of_the_recipe():
    assert build_loss(load_recipe("seresnext50").recipe.loss) == CrossEntropy(0.1)
    changes = ["loss={name: bce, label_smoothing: 0, target_threshold: 0.2}", "mix.mixup=0.2"]
    assert build_loss(load_recipe("seresnext50", changes).recipe.loss) == BinaryCrossEntropy(0.0, 0.2)


def test_autos_are_settled_for_the_cpu():
    values, notices = resolve_auto(load_recipe("seresnext50").values, {}, World())
    assert values["runtime"]["precision"] == "fp32"
    assert values["runtime"]["compile"] is False
    assert values["evaluation"]["weights"] == "model"
    assert notices == []


def test_autos_keep_what_the_run_settled_before():
    fresh = load_recipe("seresnext50").values
    before = {**fresh, "runtime": {**fresh["runtime"], "precision": "fp64", "compile": False}}
    before["evaluation"] = {**fresh["evaluation"], "weights": "model"}
    values, _ = resolve_auto(fresh, before, World())
    assert values["runtime"]["precision"] == "fp64"


def test_what_is_not_auto_is_not_taken_from_before():
    fresh = load_recipe("seresnext50", ["runtime.precision=fp32"]).values
    before = {**fresh, "runtime": {**fresh["runtime"], "precision": "fp64", "compile": False}}
    values, _ = resolve_auto(fresh, before, World())
    assert values["runtime"]["precision"] == "fp32"


def test_both_splits_and_the_model_have_the_same_classes(tiny_image_folder):
    root = tiny_image_folder(classes=3)
    few = [f"data.root={root}", "batch={global_size: 8, micro_size: 8}"]
    good = load_recipe("digits", [*few, "model.num_classes=3"]).recipe
    train, val = open_splits(good, World(), print, {}, ())
    assert train.classes == val.classes == ("class_0", "class_1", "class_2")
    with pytest.raises(DataError, match=r"model\.num_classes=3"):
        open_splits(load_recipe("digits", few).recipe, World(), print, {}, ())


def test_synthetic_data_needs_no_files():
    recipe = load_recipe("digits", ["data.format=synthetic", "data.synthetic_images=100"]).recipe
    train, val = open_splits(recipe, World(), print, {}, ())
    assert len(train) == len(val) == 100
    assert len(train.classes) == 10


def test_mixing_ends_where_the_recipe_says():
    recipe = load_recipe("digits", ["mix={mixup: 0.2, off_after: 3ep}"]).recipe
    mix = build_mixup_cutmix(recipe, steps_per_epoch=10)
    assert mix is not None
    assert mix.last_step == 30
    assert build_mixup_cutmix(load_recipe("digits").recipe, 10) is None


AUGMENTED = {
    "augment.policy": "{name: randaugment, num_ops: 2, magnitude: 9}",
    "augment.color_jitter": "{brightness: 0.4}",
    "augment.erasing": "{probability: 1.0, value: 0.5}",
    "augment.flip": "0.5",
    "data.progressive": "{min_size: 16, start_ramp: 1ep, end_ramp: 3ep}",
}


def first_batch(root, settings):
    few = ["model.num_classes=3", "batch={global_size: 8, micro_size: 8}"]
    overrides = [f"data.root={root}", *few, *(f"{key}={value}" for key, value in settings.items())]
    recipe = load_recipe("digits", overrides).recipe
    train, _ = open_splits(recipe, World(), print, {}, ())
    order = Order(len(train), 8, 8, 0)
    ramp = build_image_size_schedule(recipe, order.steps_per_epoch)
    return train_source(recipe, train).make(next(train_keys(order, range(1), 0, 1, ramp)))


@pytest.mark.parametrize("key", AUGMENTED)
def test_each_augmentation_of_a_recipe_reaches_its_batches(tiny_image_folder, key):
    root = tiny_image_folder(classes=3)
    full = first_batch(root, AUGMENTED)
    without = first_batch(root, {name: value for name, value in AUGMENTED.items() if name != key})
    if key == "augment.erasing":
        assert without.boxes is None
        assert full.boxes is not None
        assert (full.boxes[:, 2:] > 0).all()
    elif key == "data.progressive":
        assert (full.images.shape[2:], without.images.shape[2:]) == ((16, 16), (32, 32))
    else:
        assert not torch.equal(full.images, without.images)


def test_what_is_erased_is_filled_as_the_recipe_says():
    recipe = load_recipe("digits", ["augment.erasing={value: random}", "runtime.seed=3"]).recipe
    assert build_erase_fill(recipe) == EraseFill("random", 3)
    assert build_erase_fill(load_recipe("digits").recipe) is None


def test_sizes_rise_where_the_recipe_says():
    recipe = load_recipe("seresnext50", ["data.progressive={min_size: 128, end_ramp: 60ep}"]).recipe
    plan = build_plan(recipe, steps_per_epoch=10)
    assert build_image_size_schedule(recipe, plan.steps_per_epoch) == ImageSizeSchedule(128, 224, 0, 600)
    lower = load_recipe("seresnext50", ["data.progressive={min_size: 128, max_size: 192, end_ramp: 7st}"]).recipe
    assert build_image_size_schedule(lower, plan.steps_per_epoch) == ImageSizeSchedule(128, 192, 0, 7)
    assert build_image_size_schedule(load_recipe("seresnext50").recipe, plan.steps_per_epoch) is None


def test_weights_in_double_precision_are_not_rounded(tmp_path):
    section = load_recipe("digits").recipe.model
    torch.manual_seed(0)
    source = build_model(section).double()
    exact = torch.tensor(1 / 3, dtype=torch.float64)
    source.last_linear.weight.data.fill_(exact)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    section = section.model_copy(update={"weights": str(tmp_path / "weights.safetensors")})
    model = PRECISIONS["fp64"].place(build_model(section), torch.device("cpu"), channels_last=False)
    assert load_first_weights(model, section, lambda: False) == []
    assert model.last_linear.weight[0, 0] == exact
    assert exact.float().double() != exact  # The control: in float32 it would be another number.


@pytest.mark.parametrize(
    ("classes", "reset_head", "warned"),
    [
        ([f"{n}" for n in range(12)], False, True),
        ([f"{n}" for n in range(12)], True, False),
        ([f"{n:02d}" for n in range(12)], False, False),
        (list("abcdefghijkl"), False, False),
    ],
)
def test_a_classifier_whose_labels_are_others_is_reported(tmp_path, classes, reset_head, warned):
    """A run orders labels as text: 0, 1, 10 ... A bare file of other tools may order labels by number."""
    section = load_recipe("digits", ["model.num_classes=12"]).recipe.model
    model = build_model(section)
    (tmp_path / "run").mkdir()
    save_file(model.state_dict(), tmp_path / "run" / "best.safetensors", {"format": "pt"})
    section = section.model_copy(update={"weights": str(tmp_path / "run"), "reset_head": reset_head})
    reader = SimpleNamespace(classes=tuple(sorted(classes)))
    notes = load_first_weights(model, section, lambda: has_other_labels(reader))
    assert any("model.reset_head=true" in note and "best.safetensors" in note for note in notes) is warned


def test_an_address_of_weights_is_refused(tmp_path):
    section = load_recipe("digits", ["model.weights=http://host//a/w.pth"]).recipe.model
    with pytest.raises(CheckpointError, match=r"http://host//a/w\.pth"):
        load_first_weights(build_model(section), section, lambda: False)
