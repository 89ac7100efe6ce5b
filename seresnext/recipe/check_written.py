"""What somebody wrote into a recipe that has no effect there.

This is asked when a recipe is read for a run, and not of the recipe in a checkpoint: that run has done what it did.
Where something was written counts, since a value that only stands in a base, or that is a default, is nobody's wish
for this run: `origins` maps the dotted path of every value to `file:line`, `--set` or `default`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from seresnext.recipe.check_lengths import late_keys
from seresnext.recipe.problem import Problem
from seresnext.recipe.schema import DataSection, Recipe

TYPED, DEFAULT = "--set", "default"

# Keys of image files. Any recipe becomes one of made-up images by --set, so it may have them.
_OF_FILES = (
    "augment.crop_scale",
    "augment.crop_ratio",
    "augment.flip",
    "augment.interpolation",
    "data.cache",
    "data.max_pixels",
    "data.on_error",
    "data.train_split",
    "data.val_split",
    "evaluation.crop_pct",
    "evaluation.interpolation",
)


def written_problems(recipe: Recipe, origins: Mapping[str, str]) -> Iterator[Problem]:
    """Every value that somebody wrote for this run and that has no effect in it."""
    meant = meant_keys(origins)
    yield from (late.problem for late in late_keys(recipe) if late.key in meant)
    yield from _data(recipe, origins)
    yield from _loss(recipe)


def meant_keys(origins: Mapping[str, str]) -> frozenset[str]:
    """The keys that somebody wrote for a run of the length that it has.

    A length on the command line shortens a recipe to try it out; then they are those on the command line as well. So
    are those of a recipe in which every key is written: a run has resolved it, and it does not tell the two apart.
    """
    typed = {key for key, origin in origins.items() if origin == TYPED}
    if "length" in typed or DEFAULT not in origins.values():
        return frozenset(typed)
    return frozenset(key for key, origin in origins.items() if origin != DEFAULT)


def _data(recipe: Recipe, origins: Mapping[str, str]) -> Iterator[Problem]:
    data, usual = recipe.data, DataSection()
    if data.on_error == "raise" and data.max_bad_images != usual.max_bad_images:
        yield Problem(
            "data.max_bad_images",
            f"is for data.on_error substitute and has no effect with raise, found {data.max_bad_images}; leave it out, "
            f"or write {usual.max_bad_images}, its default",
            ("data.on_error",),
        )
    if data.format != "shards" and data.cache_size != usual.cache_size:
        yield Problem(
            "data.cache_size",
            f"is for data.format shards and has no effect with {data.format}, found {data.cache_size:g}; leave it out, "
            f"or write {usual.cache_size:g}, its default",
            ("data.format",),
        )
    if data.format == "synthetic":
        for key in _OF_FILES:
            if origins.get(key) == TYPED:
                yield Problem(
                    key,
                    "has no effect with data.format synthetic: made-up images come from no file and are not "
                    "augmented; leave it out",
                    ("data.format",),
                )


def _loss(recipe: Recipe) -> Iterator[Problem]:
    """A threshold leaves nothing of smoothing, which only moves it (s: smoothing, K: classes):

    share (1 - s) + s / K > threshold  <=>  share > (threshold - s / K) / (1 - s)
    """
    loss, num_classes = recipe.loss, recipe.model.num_classes
    smoothing, threshold = loss.label_smoothing, loss.target_threshold
    if loss.name != "bce" or threshold is None or not smoothing or not (recipe.mix.mixup or recipe.mix.cutmix):
        return  # Or it is another problem.
    same = (threshold - smoothing / num_classes) / (1 - smoothing)
    hint = f" (a threshold of {same:.3g} then gives the same targets)" if 0 <= same < 1 else ""
    yield Problem(
        "loss.label_smoothing",
        f"has no effect but to move loss.target_threshold, {threshold}, which makes every target 0 or 1, found "
        f"{smoothing}; set it to 0{hint}",
        ("loss.target_threshold",),
    )
