"""Keys that disagree, and worlds that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seresnext.errors import RecipeError
from seresnext.models import create_model
from seresnext.recipe import Recipe, check_world, load_recipe, recipe_from_values
from seresnext.recipe.check import cross_field_problems

# Overrides of recipes/seresnext50.yaml, and parts of the one problem they make; then what to change to make it good.
DISAGREEMENTS = {
    "shards together in folders": (
        ["data.shuffle_shards=8"],
        ["data.shuffle_shards", "has no effect with data.format folder"],
        "data.format=shards",
    ),
    "address of folders": (
        ["data.root=https://host/path"],
        ["data.root", "only shards are read from a server"],
        "data.format=shards",
    ),
    "secret in an address": (
        ["data={root: 's3://key:word@bucket/x', format: shards}"],
        ["data.root", "credentials through the environment"],
        "data.root=s3://bucket/x",
    ),
    "global size": (["batch.global_size=1000"], ["batch.global_size", "128", "896 or 1024"], "batch.global_size=896"),
    "global below micro": (["batch.global_size=64"], ["batch.global_size", "write 128"], "batch.micro_size=64"),
    "one value to normalise": (
        ["batch.micro_size=1", "data.image_size=32"],
        ["batch.micro_size", "of 32 pixels a side layer4 leaves one pixel"],
        "data.image_size=35",
    ),
    "one value at first": (
        ["batch.micro_size=1", "data.progressive={min_size: 16, end_ramp: 10ep}"],
        ["batch.micro_size", "of 16 pixels a side layer3 or layer4 leaves one pixel"],
        "batch.micro_size=2",
    ),
    "cosine with every": (
        ["schedule.name=cosine", "schedule.factor=null"],
        ["schedule.every", "30ep"],
        "schedule.every=null",
    ),
    "cosine with factor": (
        ["schedule.name=cosine", "schedule.every=null"],
        ["schedule.factor", "0.1"],
        "schedule.factor=null",
    ),
    "step without every": (["schedule.every=null"], ["schedule.every: is missing", "30ep"], "schedule.every=10ep"),
    "step without factor": (["schedule.factor=null"], ["schedule.factor: is missing", "0.1"], "schedule.factor=0.5"),
    "step with final_lr": (["schedule.final_lr=0.1"], ["schedule.final_lr", "cosine"], "schedule.final_lr=0"),
    "rising cosine": (
        ["schedule={name: cosine, final_lr: 1}"],
        ["schedule.final_lr", "above optimizer.lr"],
        "optimizer.lr=2",
    ),
    "rising line": (
        ["schedule={name: linear, final_lr: 1}"],
        ["schedule.final_lr", "above optimizer.lr"],
        "optimizer.lr=2",
    ),
    "threshold without bce": (
        ["loss={target_threshold: 0.2, label_smoothing: 0}", "mix.mixup=0.2"],
        ["loss.target_threshold", "loss.name bce"],
        "loss.name=bce",
    ),
    "threshold of one image": (
        ["loss={name: bce, target_threshold: 0.2, label_smoothing: 0}"],
        ["loss.target_threshold", "nothing is mixed"],
        "mix.cutmix=1",
    ),
    "frozen noise": (["model.frozen=[layer0, layer1]"], ["model.frozen", "model.weights"], "model.weights=w.pth"),
    "frozen drop path": (
        ["model.frozen=[layer1, layer2, layer3, layer4]", "model.weights=w.pth", "model.drop_path_rate=0.1"],
        ["model.drop_path_rate", "model.frozen"],
        "model.frozen=[layer1]",
    ),
    "frozen checkpointing": (
        ["model.frozen=[layer1, layer2, layer3, layer4]", "model.weights=w.pth", "runtime.grad_checkpointing=true"],
        ["runtime.grad_checkpointing", "model.frozen"],
        "model.frozen=[layer1]",
    ),
    "compiled checkpointing": (
        ["runtime.grad_checkpointing=true", "runtime.compile=true"],
        ["runtime.grad_checkpointing", "not compiled"],
        "runtime.compile=auto",
    ),
    "compressed fp64": (
        ["runtime.compress_gradients=bf16", "runtime.precision=fp64"],
        ["runtime.compress_gradients", "runtime.precision"],
        "runtime.precision=fp32",
    ),
    "nothing to measure": (
        ["runtime.measure=true", "runtime.channels_last=true", "runtime.compile=false"],
        ["runtime.measure", "nothing to choose"],
        "runtime.compile=auto",
    ),
    "nothing to measure with checkpointing": (
        ["runtime.measure=true", "runtime.channels_last=true", "runtime.grad_checkpointing=true"],
        ["runtime.measure", "nothing to choose"],
        "runtime.channels_last=auto",
    ),
    "recalibrated and stopped early": (
        ["evaluation.recalibrate={images: 5000}", "early_stop={patience: 5ep}"],
        ["evaluation.recalibrate", "early_stop"],
        "early_stop=null",
    ),
    "recalibrated and frozen": (
        [
            "evaluation.recalibrate={images: 5000}",
            "model.frozen=[layer0, layer1, layer2, layer3, layer4]",
            "model.weights=w.pth",
        ],
        ["evaluation.recalibrate", "model.frozen"],
        "model.frozen=[layer0]",
    ),
    "kept and not saved": (
        ["checkpoint={every: 2ep, keep_every: 5ep}"],
        ["checkpoint.keep_every", "multiple of checkpoint.every, 2ep, found 5ep"],
        "checkpoint.keep_every=4ep",
    ),
    "kept by another unit": (
        ["checkpoint={every: 500st, keep_every: 10ep}"],
        ["checkpoint.keep_every", "500st, found 10ep"],
        "checkpoint.keep_every=5000st",
    ),
    "nothing mixed": (["mix.off_after=5ep"], ["mix.off_after", "nothing is mixed"], "mix.cutmix=1"),
    "one image to mix": (["mix.mixup=1", "batch.micro_size=1"], ["mix.mixup", "no other image"], "batch.micro_size=2"),
    "nesterov": (["optimizer.nesterov=true", "optimizer.momentum=0"], ["optimizer.nesterov"], "optimizer.momentum=0.5"),
    "nothing decays": (
        ["optimizer.weight_decay=0", "optimizer.decay_norm_and_bias=false"],
        ["optimizer.decay_norm_and_bias"],
        "optimizer.weight_decay=1e-5",
    ),
    "crop_scale": (["augment.crop_scale=[1, 0.5]"], ["augment.crop_scale", "[1.0, 0.5]"], "augment.crop_scale=[1, 1]"),
    "crop_scale above 1": (
        ["augment.crop_scale=[0.5, 2]"],
        ["augment.crop_scale", "at most"],
        "augment.crop_scale=[0.5, 1]",
    ),
    "crop_ratio": (["augment.crop_ratio=[2, 1]"], ["augment.crop_ratio", "[2.0, 1.0]"], "augment.crop_ratio=[1, 2]"),
    "how many images": (["data.format=synthetic"], ["data.synthetic_images: is missing"], "data.synthetic_images=5000"),
    "synthetic images in folders": (["data.synthetic_images=5"], ["data.synthetic_images"], "data.format=synthetic"),
    "reset_head": (["model.reset_head=true"], ["model.reset_head", "model.weights"], "model.weights=w.pth"),
    "zero_init_last": (
        ["model.zero_init_last=true", "model.weights=w.pth"],
        ["model.zero_init_last"],
        "model.weights=null",
    ),
    "no average": (["evaluation.weights=ema"], ["evaluation.weights", "ema is null"], "ema={decay: 0.9}"),
    "grey": (
        ["model.in_channels=1", "data.mean=[0.5]", "data.std=[0.5]"],
        ["model.in_channels", "must be 3, found 1"],
        "data={format: synthetic, synthetic_images: 5000, mean: [0.5], std: [0.5]}",
    ),
    "mean": (["data.mean=[0.5]"], ["data.mean", "one number per channel, 3"], "data.mean=[0.5, 0.5, 0.5]"),
    "std": (["data.std=[1, 1, 1, 1]"], ["data.std", "found 4"], "data.std=[1, 1, 1]"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_disagreement_and_its_cure(case: str) -> None:
    overrides, fragments, cure = DISAGREEMENTS[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", overrides)
    assert len(caught.value.problems) == 1, caught.value.problems
    for fragment in fragments:
        assert fragment in caught.value.problems[0]
    assert cross_field_problems(load_recipe("seresnext50", [*overrides, cure]).recipe) == []


def test_a_problem_points_at_a_line_that_somebody_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("model: {name: seresnext26}\n\nschedule:\n  name: step\n  every: 3ep\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert caught.value.problems[0].startswith("r.yaml:4: schedule.factor: is missing")


def recipe(global_size: int, micro_size: int) -> Recipe:
    batch = {"global_size": global_size, "micro_size": micro_size}
    return recipe_from_values({"model": {"name": "seresnext26"}, "batch": batch}, "test")


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_worlds_that_divide_the_replicas(world_size: int) -> None:
    check_world(recipe(1024, 128), world_size)


@pytest.mark.parametrize(("world_size", "fragments"), [
    (3, ["3 processes", "start 1, 2, 4 or 8 processes", "batch.global_size=768", "batch.global_size=1152"]),
    (16, ["16 processes", "batch.micro_size=64", "batch.global_size=2048"]),
    (2048, ["start 1, 2, 4 or 8 processes", "batch.global_size=262144"]),
])  # fmt: skip
def test_worlds_that_do_not(world_size: int, fragments: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_world(recipe(1024, 128), world_size)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(("stage", "side"), [("layer3", 18), ("layer4", 34)])
def test_an_image_that_is_refused_alone_is_one_that_batchnorm_refuses(stage: str, side: int) -> None:
    model = create_model("seresnext26", 2, 3)
    if stage == "layer3":
        model.layer4.eval()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.zeros(1, 3, side, side))
    model(torch.zeros(1, 3, side + 1, side + 1))
