"""Values that somebody wrote and that have no effect: refused where they were written, not where they are left over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seresnext.errors import RecipeError
from seresnext.recipe import load_recipe, recipe_from_values
from seresnext.recipe.show import to_yaml
from seresnext.training.loss import BinaryCrossEntropy

SYNTHETIC = "data={format: synthetic, synthetic_images: 5000}"

# Overrides of recipes/seresnext50.yaml, and parts of the one problem they make; then what to change to make it good.
WRITTEN = {
    "how many to replace": (
        ["data.max_bad_images=5"],
        ["data.max_bad_images", "for data.on_error substitute", "raise, found 5", "write 100, its default"],
        "data.on_error=substitute",
    ),
    "a cache of folders": (
        ["data.cache_size=50"],
        ["data.cache_size", "for data.format shards", "folder, found 50", "write 200, its default"],
        "data.format=shards",
    ),
    "smoothing below a threshold": (
        ["loss={name: bce, target_threshold: 0.2}", "mix.mixup=0.2"],
        ["loss.label_smoothing", "found 0.1", "set it to 0 (a threshold of 0.222 then"],
        "loss={name: bce, target_threshold: 0.222, label_smoothing: 0}",
    ),
    "a threshold below smoothing": (
        ["loss={name: bce, target_threshold: 0.00001, label_smoothing: 0.1}", "mix.mixup=0.2"],
        ["loss.label_smoothing", "set it to 0"],
        "loss.label_smoothing=0",
    ),
    **{
        f"synthetic {key}": ([SYNTHETIC, f"{key}={value}"], [key, "no effect with data.format synthetic"], None)
        for key, value in (
            ("augment.crop_scale", "[0.5, 1]"),
            ("augment.crop_ratio", "[1, 1]"),
            ("augment.flip", "0.5"),  # Also what is the default.
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


@pytest.mark.parametrize("case", WRITTEN)
def test_what_was_written_and_its_cure(case: str) -> None:
    overrides, fragments, cure = WRITTEN[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", overrides)
    assert len(caught.value.problems) == 1, caught.value.problems
    for fragment in fragments:
        assert fragment in caught.value.problems[0]
    load_recipe("seresnext50", [*overrides, cure] if cure else overrides[1:])


@pytest.mark.parametrize("name", ["seresnext26", "digits", "seresnext101_strong"])
def test_any_recipe_becomes_one_of_made_up_images(name: str, tmp_path: Path) -> None:
    """With the crops of its file; and the recipe that such a run stores loads again."""
    off = ["augment.policy=null"] if name == "seresnext101_strong" else []
    loaded = load_recipe(name, ["data.format=synthetic", "data.synthetic_images=5000", *off])
    (tmp_path / "recipe.yaml").write_text(to_yaml(loaded.values))
    assert load_recipe(tmp_path / "recipe.yaml").values == loaded.values


@pytest.mark.parametrize("case", ["how many to replace", "a cache of folders", "smoothing below a threshold"])
def test_a_checkpoint_may_have_them(case: str) -> None:
    """It is still validated, and resumed by a recipe that is mended."""
    values = load_recipe("seresnext50").values
    changes = {"data": {"max_bad_images": 5, "cache_size": 50.0}, "loss": {"name": "bce", "target_threshold": 0.2}}
    changed = {name: {**values[name], **changes.get(name, {})} if name in changes else values[name] for name in values}
    changed["mix"] = {**values["mix"], "mixup": 0.2}
    recipe_from_values(changed, "last.safetensors")


def test_another_threshold_gives_the_targets_of_smoothing() -> None:
    """What the message says, for shares of an image on both sides of it."""
    shares = torch.tensor([[0.2, 0.8], [0.221, 0.779], [0.223, 0.777], [0.5, 0.5]])
    targets = torch.cat([shares, torch.zeros(4, 998)], 1)
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    smoothed, plain = BinaryCrossEntropy(0.1, 0.2), BinaryCrossEntropy(0.0, 0.222)
    assert torch.equal(smoothed(logits, targets), plain(logits, targets))
    assert not torch.equal(smoothed(logits, targets), BinaryCrossEntropy(0.0, 0.2)(logits, targets))  # The control.
