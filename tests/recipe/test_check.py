"""Keys that disagree, values without effect, and worlds that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seresnext.errors import RecipeError
from seresnext.models import create_model
from seresnext.recipe import Recipe, check_world, load_recipe, recipe_from_values, to_values
from seresnext.recipe.check import cross_field_problems
from seresnext.recipe.show import to_yaml
from seresnext.training.loss import BinaryCrossEntropy

# Overrides of recipes/seresnext50.yaml; parts of the one problem that results; the override that fixes the problem.
DISAGREEMENTS = {
    "shards together in folders": (
        ["data.shuffle_shards=8"],
        ["data.shuffle_shards", "for data.format shards", "has no effect with folder"],
        "data.format=shards",
    ),
    "address of folders": (
        ["data.root=https://host/path"],
        ["data.root", "the only format that is read from a server"],
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
        ["batch.micro_size", "layer4 reduces one image of 32x32 pixels"],
        "data.image_size=35",
    ),
    "one value at first": (
        ["batch.micro_size=1", "data.progressive={min_size: 16, end_ramp: 10ep}"],
        ["batch.micro_size", "layer3 or layer4 reduces one image of 16x16 pixels"],
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
        ["loss.target_threshold", "mixup and CutMix are off"],
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
    "nothing mixed": (["mix.off_after=5ep"], ["mix.off_after", "mixup and CutMix are off"], "mix.cutmix=1"),
    "one image to mix": (
        ["mix.mixup=1", "batch.micro_size=1"],
        ["mix.mixup", "needs a second image"],
        "batch.micro_size=2",
    ),
    "nesterov": (["optimizer.nesterov=true", "optimizer.momentum=0"], ["optimizer.nesterov"], "optimizer.momentum=0.5"),
    "momentum of adamw": (
        ["optimizer.name=adamw", "optimizer.momentum=0.8"],
        ["optimizer.momentum", "for optimizer.name sgd", "found 0.8", "the default, 0.9"],
        "optimizer.momentum=0.9",
    ),
    "nesterov of adamw": (
        ["optimizer.name=adamw", "optimizer.nesterov=true"],
        ["optimizer.nesterov", "for optimizer.name sgd", "the default, false"],
        "optimizer={name: adamw, lr: 0.001}",
    ),
    "betas of sgd": (
        ["optimizer.betas=[0.9, 0.99]"],
        ["optimizer.betas", "for optimizer.name adamw", "found [0.9, 0.99]", "the default, [0.9, 0.999]"],
        "optimizer.name=adamw",
    ),
    "eps of sgd": (["optimizer.eps=1e-6"], ["optimizer.eps", "for optimizer.name adamw"], "optimizer.name=adamw"),
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
        ["model.in_channels", "must be 3", "found 1"],
        "data={format: synthetic, synthetic_images: 5000, mean: [0.5], std: [0.5]}",
    ),
    "mean": (["data.mean=[0.5]"], ["data.mean", "one number per channel, 3"], "data.mean=[0.5, 0.5, 0.5]"),
    "std": (["data.std=[1, 1, 1, 1]"], ["data.std", "found 4"], "data.std=[1, 1, 1]"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_disagreement_and_fix(case: str) -> None:
    overrides, fragments, fix = DISAGREEMENTS[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", overrides)
    assert len(caught.value.problems) == 1, caught.value.problems
    for fragment in fragments:
        assert fragment in caught.value.problems[0]
    assert cross_field_problems(load_recipe("seresnext50", [*overrides, fix]).recipe) == []


def test_problem_names_a_line_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_worlds_that_do_not_divide_the_replicas(world_size: int, fragments: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_world(recipe(1024, 128), world_size)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(("stage", "side"), [("layer3", 18), ("layer4", 34)])
def test_batchnorm_refuses_a_lone_image_of_this_size(stage: str, side: int) -> None:
    model = create_model("seresnext26", 2, 3)
    if stage == "layer3":
        model.layer4.eval()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.zeros(1, 3, side, side))
    model(torch.zeros(1, 3, side + 1, side + 1))


# ------------------------------------------------------------------------------------------------ unused settings

SYNTHETIC = "data={format: synthetic, synthetic_images: 5000}"

# Values without effect: overrides of recipes/seresnext50.yaml, parts of the problem, and the override with the fix.
UNUSED = {
    "how many to replace": (
        ["data.max_bad_images=5"],
        ["data.max_bad_images", "for data.on_error substitute", "raise, found 5", "the default, 100"],
        "data.on_error=substitute",
    ),
    "a cache of folders": (
        ["data.cache_size=50"],
        ["data.cache_size", "for data.format shards", "folder, found 50", "the default, 200"],
        "data.format=shards",
    ),
    "smoothing below a threshold": (
        ["loss={name: bce, target_threshold: 0.2}", "mix.mixup=0.2"],
        ["loss.label_smoothing", "found 0.1", "write 0 (a threshold of 0.222 then"],
        "loss={name: bce, target_threshold: 0.222, label_smoothing: 0}",
    ),
    "a threshold below smoothing": (
        ["loss={name: bce, target_threshold: 0.00001, label_smoothing: 0.1}", "mix.mixup=0.2"],
        ["loss.label_smoothing", "write 0"],
        "loss.label_smoothing=0",
    ),
    **{
        f"synthetic {key}": ([SYNTHETIC, f"{key}={value}"], [key, "no effect with data.format synthetic"], None)
        for key, value in (
            ("augment.crop_scale", "[0.5, 1]"),
            ("augment.crop_ratio", "[1, 1]"),
            ("augment.flip", "0.5"),  # The default.
            ("augment.interpolation", "bicubic"),
            ("data.cache", "index"),
            ("data.max_pixels", "1000"),
            ("data.on_error", "substitute"),
            ("data.val_split", "test"),
            ("evaluation.crop_pct", "1.0"),
            ("evaluation.interpolation", "bicubic"),
        )
    },
}


@pytest.mark.parametrize("case", UNUSED)
def test_unused_setting_and_fix(case: str) -> None:
    overrides, fragments, fix = UNUSED[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", overrides)
    assert len(caught.value.problems) == 1, caught.value.problems
    for fragment in fragments:
        assert fragment in caught.value.problems[0]
    load_recipe("seresnext50", [*overrides, fix] if fix else overrides[1:])


@pytest.mark.parametrize("name", ["seresnext26", "digits", "seresnext101_strong"])
def test_any_recipe_runs_with_synthetic_images(name: str, tmp_path: Path) -> None:
    """The crops in the file are accepted. The recipe that the run stores loads again."""
    off = ["augment.policy=null"] if name == "seresnext101_strong" else []
    loaded = load_recipe(name, ["data.format=synthetic", "data.synthetic_images=5000", *off])
    (tmp_path / "recipe.yaml").write_text(to_yaml(to_values(loaded.recipe)))
    assert load_recipe(tmp_path / "recipe.yaml").recipe == loaded.recipe


def test_checkpoint_may_have_unused_settings() -> None:
    """Such a checkpoint can be validated, and resumed by a corrected recipe."""
    values = to_values(load_recipe("seresnext50").recipe)
    changes = {"data": {"max_bad_images": 5, "cache_size": 50.0}, "loss": {"name": "bce", "target_threshold": 0.2}}
    changed = {name: {**values[name], **changes.get(name, {})} if name in changes else values[name] for name in values}
    changed["mix"] = {**values["mix"], "mixup": 0.2}
    recipe_from_values(changed, "last.safetensors")


def test_threshold_of_the_message_gives_the_same_targets() -> None:
    """Shares of an image on both sides of the threshold."""
    shares = torch.tensor([[0.2, 0.8], [0.221, 0.779], [0.223, 0.777], [0.5, 0.5]])
    targets = torch.cat([shares, torch.zeros(4, 998)], 1)
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    smoothed, plain = BinaryCrossEntropy(0.1, 0.2), BinaryCrossEntropy(0.0, 0.222)
    assert torch.equal(smoothed(logits, targets), plain(logits, targets))
    assert not torch.equal(smoothed(logits, targets), BinaryCrossEntropy(0.0, 0.2)(logits, targets))  # Control.
