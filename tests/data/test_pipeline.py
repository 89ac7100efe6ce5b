"""The data path of a recipe: each key of augmentation and mixing reaches the object that uses the key."""

import pytest
import torch

from seresnext.data.augment.erase import EraseFill, build_erase_fill
from seresnext.data.augment.mixup import build_mixup_cutmix
from seresnext.data.augment.progressive import ImageSizeSchedule, build_image_size_schedule
from seresnext.data.formats import open_reader
from seresnext.data.loading.loader import train_keys
from seresnext.data.pipeline import build_order, train_source
from seresnext.recipe.load import load_recipe

AUGMENTED = {
    "augment.policy": "{name: randaugment, num_ops: 2, magnitude: 9}",
    "augment.color_jitter": "{brightness: 0.4}",
    "augment.erasing": "{probability: 1.0, value: 0.5}",
    "augment.flip": "0.5",
    "data.progressive": "{min_size: 16, start_ramp: 1ep, end_ramp: 3ep}",
}


def first_batch(root, settings):
    overrides = ["model.num_classes=3", "batch={global_size: 8, micro_size: 8}"]
    recipe = load_recipe("digits", [*overrides, *(f"{key}={value}" for key, value in settings.items())]).recipe
    reader = open_reader(root, "train")
    order = build_order(recipe, reader)
    sizes = build_image_size_schedule(recipe, order.steps_per_epoch)
    return train_source(recipe, reader).make(next(train_keys(order, range(1), 0, 1, sizes)))


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


def test_mixing_ends_at_the_step_of_the_recipe():
    recipe = load_recipe("digits", ["mix={mixup: 0.2, off_after: 3ep}"]).recipe
    mix = build_mixup_cutmix(recipe, steps_per_epoch=10)
    assert mix is not None
    assert mix.last_step == 30
    assert build_mixup_cutmix(load_recipe("digits").recipe, 10) is None


def test_erased_boxes_are_filled_by_the_recipe():
    recipe = load_recipe("digits", ["augment.erasing={value: random}", "runtime.seed=3"]).recipe
    assert build_erase_fill(recipe) == EraseFill("random", 3)
    assert build_erase_fill(load_recipe("digits").recipe) is None


def test_image_sizes_rise_by_the_recipe():
    recipe = load_recipe("seresnext50", ["data.progressive={min_size: 128, end_ramp: 60ep}"]).recipe
    assert build_image_size_schedule(recipe, 10) == ImageSizeSchedule(128, 224, 0, 600)
    lower = load_recipe("seresnext50", ["data.progressive={min_size: 128, max_size: 192, end_ramp: 7st}"]).recipe
    assert build_image_size_schedule(lower, 10) == ImageSizeSchedule(128, 192, 0, 7)
    assert build_image_size_schedule(load_recipe("seresnext50").recipe, 10) is None
