"""Keys that disagree, values without effect, and worlds that do not fit."""

from pathlib import Path

import pytest
import torch

from seresnext.errors import RecipeError
from seresnext.models import create_model
from seresnext.recipe import check_world, load_recipe, recipe_from_values, to_values
from seresnext.recipe.reader import write_value
from seresnext.recipe.show import print_recipe, to_yaml

# Overrides of recipes/seresnext50.yaml | parts of the one problem that results | the override that fixes the problem
DISAGREEMENTS = """
data.shuffle_shards=8 | data.shuffle_shards: has no effect with data.format folder, only with shards; null | \
data.format=shards
data.split={}; data.train_split=all | data.split: divides; found all and val; null | data.train_split=train
data.format=shards; data.split={val: 0.1} | data.split: ; only with folder; null | data.split=null
model.num_classes=auto; model.weights=x | model.num_classes: needs a new head | model.reset_head=true
model.num_classes=auto; data.format=synthetic; data.synthetic_images=5 | model.num_classes: ; write a number | \
model.num_classes=3
data.max_bad_images=5 | data.max_bad_images: ; on_error raise; found 5; the default, 100 | data.on_error=substitute
data.root=https://host/path | data.root: is an address; data.format shards | data.format=shards
data.format=shards; data.root=s3://key:word@bucket/x | data.root: contains a user; credentials | data.root=s3://bucket/x
data.format=shards; data.root=https://[x/y | data.root: is not a valid address | data.root='photos [x/y'
data.format=synthetic | data.synthetic_images: is missing | data.synthetic_images=5000
data.synthetic_images=5 | data.synthetic_images: ; only with synthetic | data.format=synthetic
data.mean=[0.5] | data.mean: needs one number per channel, 3 | data.mean=[0.5, 0.5, 0.5]
model.in_channels=1; data.mean=[0.5]; data.std=[0.5] | model.in_channels: must be 3; found 1 | \
data={format: synthetic, synthetic_images: 5, mean: [0.5], std: [0.5]}
data.progressive={end_ramp: 60ep} | data.progressive.min_size: is missing | data.progressive.min_size=160
data.progressive={min_size: 128} | data.progressive.end_ramp: is missing | data.progressive.end_ramp=60ep
data.progressive={min_size: 128, max_size: 256, end_ramp: 6ep} | progressive.max_size: ; 224; 256 | data.image_size=256
data.progressive={min_size: 224, end_ramp: 6ep} | progressive.min_size: ; image_size, 224 | data.image_size=256
data.progressive={min_size: 192, max_size: 160, end_ramp: 6ep} | data.progressive.min_size: ; below \
data.progressive.max_size, 160 | data.progressive.max_size=224
augment.crop_scale=[1, 0.5] | augment.crop_scale: ; [1.0, 0.5] | augment.crop_scale=[1, 1]
augment.crop_scale=[0.5, 2] | augment.crop_scale[1]: must be at most 1, found 2 | augment.crop_scale=[0.5, 1]
augment.crop_ratio=[2, 1] | augment.crop_ratio: ; [2.0, 1.0] | augment.crop_ratio=[1, 2]
augment.erasing={scale: [0.3, 0.2]} | augment.erasing.scale: ; [0.3, 0.2] | augment.erasing.scale=[0.2, 0.3]
augment.policy={name: randaugment, magnitude: 9} | augment.policy.num_ops: is missing | augment.policy.num_ops=2
augment.policy={num_ops: 2, magnitude: 31} | policy.magnitude: ; bins, 31, found 31 | augment.policy.magnitude=30
augment.policy={name: trivialaugment, num_ops: 2} | policy.num_ops: ; no effect | augment.policy.num_ops=null
augment.color_jitter={hue: 0} | augment.color_jitter: ; all factors 0 | augment.color_jitter.contrast=0.4
augment.repeats=3 | augment.repeats: must divide; 1024; write batch.global_size=768 | batch.global_size=768
mix.off_after=5ep | mix.off_after: ; mixup and CutMix are off | mix.cutmix=1
mix.mixup=1; batch.micro_size=1 | mix.mixup: needs a second image | batch.micro_size=2
batch.global_size=1000 | batch.global_size: ; 128; write batch.micro_size=125 | batch.micro_size=125
batch.micro_size=1; data.image_size=32 | batch.micro_size: ; layer4 reduces one image of 32x32 | data.image_size=35
batch.micro_size=1; data.progressive={min_size: 16, end_ramp: 10ep} | batch.micro_size: ; layer3 or layer4 reduces one \
image of 16x16 pixels | batch.micro_size=2
schedule.name=cosine; schedule.factor=null | schedule.every: ; 30ep | schedule.every=null
schedule.every=null | schedule.every: is missing; 30ep | schedule.every=10ep
schedule.final_lr=0.1 | schedule.final_lr: ; only with cosine or linear | schedule.final_lr=0
schedule={name: cosine, final_lr: 1} | schedule.final_lr: must be at most optimizer.lr | optimizer.lr=2
loss={target_threshold: 0.2, label_smoothing: 0}; mix.mixup=0.2 | target_threshold: ; only with bce | loss.name=bce
loss={name: bce, target_threshold: 0.2, label_smoothing: 0} | target_threshold: ; without mixing | mix.cutmix=1
loss={name: bce, target_threshold: 0.2}; mix.mixup=0.2 | loss.label_smoothing: ; found 0.1; write 0 | \
loss={name: bce, target_threshold: 0.222, label_smoothing: 0}
loss={name: bce, target_threshold: 0.00001}; mix.mixup=0.2 | loss.label_smoothing: ; write 0 | loss.label_smoothing=0
model.reset_head=true | model.reset_head: ; model.weights | model.weights=w.pth
model.zero_init_last=true; model.weights=w.pth | model.zero_init_last: | model.weights=null
model.frozen=[layer0, layer1] | model.frozen: needs model.weights | model.weights=w.pth
model.frozen=[layer1, layer2, layer3, layer4]; model.weights=w.pth; model.drop_path_rate=0.1 | model.drop_path_rate: ; \
layer1 to layer4 are in model.frozen | model.frozen=[layer1]
model.frozen=[layer1, layer2, layer3, layer4]; model.weights=w.pth; runtime.grad_checkpointing=true | \
runtime.grad_checkpointing: ; model.frozen | model.frozen=[layer1]
model.frozen=[layer0, layer1, layer2, layer3, layer4]; model.weights=w.pth; evaluation.recalibrate={images: 5000} | \
evaluation.recalibrate: ; model.frozen | model.frozen=[layer0]
loss.class_weights=balanced; data.sampling=balanced | loss.class_weights: is balanced; twice | data.sampling=shuffle
data.format=shards; data.shuffle_shards=8; data.sampling=balanced | data.shuffle_shards: ; data.sampling; found 8 | \
data.shuffle_shards=null
optimizer.head_lr=0.6 | optimizer.head_lr: ; the same optimizer.lr; null | optimizer.head_lr=0.7
model.frozen=[layer0, layer1, layer2, layer3, layer4]; model.weights=w.pth; optimizer.head_lr=1 | optimizer.head_lr: ; \
all stages | model.frozen_until=2ep
model.frozen=[layer0, layer1, layer2, layer3, layer4]; model.weights=w.pth; optimizer.layer_decay=0.5 | \
optimizer.layer_decay: ; found 0.5; default, 1.0 | model.frozen=[layer0]
model.frozen_until=2ep | model.frozen_until: has no effect without model.frozen; 2ep | \
model={name: seresnext50, frozen: [layer0], frozen_until: 2ep, weights: w.pth}
runtime.grad_checkpointing=true; runtime.compile=true | grad_checkpointing: ; not compiled | runtime.compile=auto
runtime.compress_gradients=bf16; runtime.precision=fp64 | runtime.compress_gradients: | runtime.precision=fp32
evaluation.recalibrate={images: 5000}; early_stop={patience: 5ep} | recalibrate: ; early_stop | early_stop=null
evaluation.weights=ema | evaluation.weights: ; ema is null | ema={decay: 0.9}
checkpoint={every: 2ep, keep_every: 5ep} | checkpoint.keep_every: ; 2ep, found 5ep | checkpoint.keep_every=4ep
optimizer.nesterov=true; optimizer.momentum=0 | optimizer.nesterov: | optimizer.momentum=0.5
optimizer.weight_decay=0; optimizer.decay_norm_and_bias=false | decay_norm_and_bias: | optimizer.weight_decay=1e-5
"""
SYNTHETIC = "data={format: synthetic, synthetic_images: 5000}"


@pytest.mark.parametrize("row", DISAGREEMENTS.strip().splitlines())
def test_disagreement_and_fix(row: str) -> None:
    overrides, parts, fix = row.split(" | ")
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", overrides.split("; "))
    (problem,) = caught.value.problems
    for part in parts.split("; "):
        assert part in problem
    load_recipe("seresnext50", [*overrides.split("; "), fix])


def test_synthetic_images_are_not_augmented() -> None:
    settings = ["policy={name: trivialaugment}", "color_jitter={hue: 0.1}", "erasing={value: random}", "repeats=2"]
    load_recipe("seresnext50", [f"augment.{setting}" for setting in settings])
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", [SYNTHETIC, *(f"augment.{setting}" for setting in settings)])
    assert len(caught.value.problems) == 4
    assert all("has no effect with synthetic images" in problem for problem in caught.value.problems)


@pytest.mark.parametrize(("world_size", "parts"), [
    (3, ["3 processes", "start 1, 2, 4 or 8 processes", "batch.global_size=768"]),
    (16, ["16 processes", "batch.micro_size=64"]),
    (2048, ["start 1, 2, 4 or 8 processes", "batch.global_size=262144"]),
])  # fmt: skip
def test_worlds_that_do_not_divide_the_replicas(world_size: int, parts: list[str]) -> None:
    recipe = load_recipe("seresnext50").recipe
    for fitting in (1, 2, 4, 8):
        check_world(recipe, fitting)
    with pytest.raises(RecipeError) as caught:
        check_world(recipe, world_size)
    for part in parts:
        assert part in str(caught.value)


def test_stages_that_are_frozen_for_a_while_count_as_trained() -> None:
    """Control: stages that stay frozen need no batch of two images, and make these keys useless."""
    stages = "model={name: seresnext50, weights: w.pth, frozen: [layer0, layer1, layer2, layer3, layer4]"
    keys = ["batch={global_size: 1, micro_size: 1}", "data.image_size=32"]
    load_recipe("seresnext50", [f"{stages}}}", *keys])
    with pytest.raises(RecipeError, match="layer4 reduces one image"):
        load_recipe("seresnext50", [f"{stages}, frozen_until: 2ep}}", *keys])
    useful = ["runtime.grad_checkpointing=true", "evaluation.recalibrate={images: 5}", "model.drop_path_rate=0.1"]
    load_recipe("seresnext50", [f"{stages}, frozen_until: 2ep}}", *useful])
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", [f"{stages}}}", *useful])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "value", ["{}", "{cat: 0}", "{cat: -1}", "{cat: .inf}", "{cat: x}", "{cat: true}", "often", "3"]
)
def test_weights_of_classes_are_positive_numbers(value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", [f"loss.class_weights={value}"])
    (problem,) = caught.value.problems
    assert problem.startswith("--set: loss.class_weights: ")
    assert "cat" in problem


def test_names_of_classes_survive_the_recipe_of_a_run(tmp_path: Path) -> None:
    """Names like these are folders that people have."""
    names = ["a: b", "yes", "1", "#2", 'say "x"', "ä", "null", "a.b", "- c", "{d}"]
    weights = ", ".join(f"{name!r}: {number}" for number, name in enumerate(names, 1))
    loaded = load_recipe("seresnext50", [f"loss.class_weights={{{weights}}}"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(to_values(loaded.recipe)))
    again = load_recipe(tmp_path / "recipe.yaml").recipe
    assert again == loaded.recipe == recipe_from_values(to_values(loaded.recipe), "last.safetensors")
    assert again.loss.class_weights == {name: float(number) for number, name in enumerate(names, 1)}
    (tmp_path / "printed.yaml").write_text(print_recipe(loaded))
    assert load_recipe(tmp_path / "printed.yaml").recipe == loaded.recipe
    assert load_recipe("seresnext50", [f"loss.class_weights={write_value(again.loss.class_weights)}"]).recipe == again


@pytest.mark.parametrize(("stage", "side"), [("layer3", 18), ("layer4", 34)])
def test_batchnorm_refuses_a_lone_image_of_this_size(stage: str, side: int) -> None:
    model = create_model("seresnext26", 2, 3)
    if stage == "layer3":
        model.layer4.eval()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.zeros(1, 3, side, side))
    model(torch.zeros(1, 3, side + 1, side + 1))


@pytest.mark.parametrize("name", ["seresnext26", "digits", "seresnext101_strong"])
def test_any_recipe_runs_with_synthetic_images(name: str) -> None:
    off = ["augment.policy=null"] if name == "seresnext101_strong" else []
    load_recipe(name, [SYNTHETIC, *off])


def test_checkpoint_may_have_unused_settings() -> None:
    """Such a checkpoint can be validated, and resumed by a corrected recipe."""
    values = to_values(load_recipe("seresnext50").recipe)
    values["data"] |= {"max_bad_images": 5, "shuffle_shards": 50}
    values["loss"] |= {"name": "bce", "target_threshold": 0.2}
    values["mix"]["mixup"] = 0.2
    values["model"]["reset_head"] = True
    recipe_from_values(values, "last.safetensors")
