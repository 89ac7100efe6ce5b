"""The data path of a recipe: each key of augmentation and mixing reaches the object that uses the key."""

import pytest
import torch

from seresnext.data.augment.crop import ImageSizeSchedule, build_image_size_schedule
from seresnext.data.augment.erase import EraseFill, build_erase_fill
from seresnext.data.augment.mixup import MixupCutmix, build_mixup_cutmix
from seresnext.data.formats import open_reader
from seresnext.data.loading.loader import train_keys
from seresnext.data.pipeline import batch_source, build_order
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
    return batch_source(recipe, reader, training=True).make(next(train_keys(order, range(1), 0, 1, sizes)))


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


def built(build, recipe: str, *settings: str):
    return build(load_recipe(recipe, settings).recipe, *[10] * (build is not build_erase_fill))


@pytest.mark.parametrize(
    ("build", "recipe", "setting", "expected"),
    [
        (build_mixup_cutmix, "digits", "mix={mixup: 0.2, off_after: 3ep}", MixupCutmix(10, 0, 0.2, 0.0, 30)),
        (build_erase_fill, "digits", "augment.erasing={value: random}", EraseFill("random", 0)),
        (build_image_size_schedule, "seresnext50", "data.progressive={min_size: 128, end_ramp: 60ep}",
         ImageSizeSchedule(128, 224, 0, 600)),
        (build_image_size_schedule, "seresnext50", "data.progressive={min_size: 128, max_size: 192, end_ramp: 7st}",
         ImageSizeSchedule(128, 192, 0, 7)),
    ],
)  # fmt: skip
def test_techniques_are_built_from_the_recipe_and_only_if_the_recipe_has_them(build, recipe, setting, expected):
    assert built(build, recipe, setting) == expected
    assert built(build, recipe) is None
