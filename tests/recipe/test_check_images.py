"""Keys of augmentation and of image sizes that disagree with others."""

from __future__ import annotations

import pytest

from seresnext.errors import RecipeError
from seresnext.recipe import load_recipe
from seresnext.recipe.check_images import image_problems
from seresnext.recipe.load import recipe_from_values

# Overrides of recipes/seresnext50.yaml; parts of the one problem that results; the override that fixes the problem.
DISAGREEMENTS = {
    "sizes without a start": (
        ["data.progressive={end_ramp: 60ep}"],
        ["data.progressive.min_size: is missing"],
        "data.progressive.min_size=160",
    ),
    "sizes without an end": (
        ["data.progressive={min_size: 128}"],
        ["data.progressive.end_ramp: is missing"],
        "data.progressive.end_ramp=60ep",
    ),
    "larger than evaluation": (
        ["data.progressive={min_size: 128, max_size: 256, end_ramp: 60ep}"],
        ["data.progressive.max_size", "data.image_size, 224", "found 256"],
        "data.image_size=256",
    ),
    "falling sizes": (
        ["data.progressive={min_size: 224, end_ramp: 60ep}"],
        ["data.progressive.min_size", "below data.image_size, 224"],
        "data.progressive.min_size=192",
    ),
    "falling sizes to another": (
        ["data.progressive={min_size: 192, max_size: 160, end_ramp: 60ep}"],
        ["data.progressive.min_size", "below data.progressive.max_size, 160"],
        "data.progressive.max_size=224",
    ),
    "randaugment without num_ops": (
        ["augment.policy={name: randaugment, magnitude: 9}"],
        ["augment.policy.num_ops: is missing"],
        "augment.policy.num_ops=2",
    ),
    "randaugment without magnitude": (
        ["augment.policy={name: randaugment, num_ops: 2}"],
        ["augment.policy.magnitude: is missing"],
        "augment.policy.magnitude=9",
    ),
    "randaugment too strong": (
        ["augment.policy={name: randaugment, num_ops: 2, magnitude: 31}"],
        ["augment.policy.magnitude", "num_magnitude_bins, 31", "found 31"],
        "augment.policy.num_magnitude_bins=32",
    ),
    "trivialaugment with num_ops": (
        ["augment.policy={name: trivialaugment, num_ops: 2}"],
        ["augment.policy.num_ops", "no effect with trivialaugment"],
        "augment.policy.num_ops=null",
    ),
    "trivialaugment with magnitude": (
        ["augment.policy={name: trivialaugment, magnitude: 0}"],
        ["augment.policy.magnitude", "no effect with trivialaugment"],
        "augment.policy.magnitude=null",
    ),
    "jitter of nothing": (
        ["augment.color_jitter={hue: 0}"],
        ["augment.color_jitter", "changes nothing"],
        "augment.color_jitter.contrast=0.4",
    ),
    "erasing.scale": (
        ["augment.erasing={scale: [0.3, 0.2]}"],
        ["augment.erasing.scale", "[0.3, 0.2]"],
        "augment.erasing.scale=[0.2, 0.3]",
    ),
    "erasing.ratio": (["augment.erasing={ratio: [3, 2]}"], ["augment.erasing.ratio"], "augment.erasing.ratio=[1, 2]"),
    "erasing.scale above 1": (
        ["augment.erasing={scale: [0.3, 1.2]}"],
        ["augment.erasing.scale", "at most"],
        "augment.erasing.scale=[0.3, 1]",
    ),
    "repeats": (["augment.repeats=3"], ["augment.repeats", "1024", "write 2 or 4"], "augment.repeats=4"),
    **{
        f"synthetic {key}": (
            ["data={format: synthetic, synthetic_images: 5000}", f"augment.{key}={value}"],
            [f"augment.{key}", "data.format synthetic"],
            f"augment.{key}={off}",
        )
        for key, value, off in (
            ("policy", "{name: trivialaugment}", "null"),
            ("color_jitter", "{hue: 0.1}", "null"),
            ("erasing", "{value: random}", "null"),
            ("repeats", "2", "1"),
        )
    },
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_disagreement_and_fix(case: str) -> None:
    overrides, fragments, fix = DISAGREEMENTS[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", overrides)
    assert len(caught.value.problems) == 1, caught.value.problems
    for fragment in fragments:
        assert fragment in caught.value.problems[0]
    assert list(image_problems(load_recipe("seresnext50", [*overrides, fix]).recipe)) == []


def test_all_problems_come_at_once() -> None:
    changes = [
        "augment.policy={name: randaugment, magnitude: 40}",
        "augment.repeats=3",
        "augment.color_jitter={hue: 0}",
    ]
    with pytest.raises(RecipeError) as caught:
        load_recipe("seresnext50", [*changes, "data.progressive={max_size: 256}"])
    keys = ["num_ops", "magnitude", "repeats", "color_jitter", "min_size", "end_ramp", "max_size"]
    assert len(caught.value.problems) == len(keys)
    for key in keys:
        assert any(f"{key}: " in problem for problem in caught.value.problems), key


def test_advice_on_repeats_of_a_huge_batch_is_quick() -> None:
    with pytest.raises(RecipeError, match=r"augment\.repeats: must divide"):
        load_recipe("seresnext50", ["batch={global_size: 9999991, micro_size: 9999991}", "augment.repeats=2"])


def test_invalid_address() -> None:
    with pytest.raises(RecipeError, match=r"data\.root: is not a valid address"):
        load_recipe("seresnext50", ["data.root=https://[x/y", "data.format=shards"])
    assert load_recipe("seresnext50", ["data.root='photos [x/y'"]).recipe.data.root == "photos [x/y"


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\x00", "\ud800", "x" * 4097])
def test_paths_are_one_short_line(text: str) -> None:
    """The text comes from the JSON of a checkpoint. The reader of YAML refuses such text itself."""
    values = {"model": {"name": "seresnext50"}, "data": {"root": text}}
    with pytest.raises(RecipeError, match=r"data\.root: ") as caught:
        recipe_from_values(values, "file")
    assert caught.value.problems[0].isprintable()
