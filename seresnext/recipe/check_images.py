"""Checks of the keys about images against each other: `data`, `augment` and `mix`."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from seresnext.recipe.batch_sizes import fitting_in_words
from seresnext.recipe.explain import Problem
from seresnext.recipe.schema import ErasingSection, Recipe


def image_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield every disagreement between the keys of `data`, `augment` and `mix`."""
    for check in (_data, _progressive, _ranges, _augment, _repeats, _mix):
        yield from check(recipe)


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data.split and (data.train_split != "train" or data.val_split not in ("val", "valid", "validation")):
        message = f"divides train into train and val, found {data.train_split} and {data.val_split}; write null"
        yield Problem("data.split", message, ("data.train_split", "data.val_split"))
    _, is_address, address = data.root.partition("://")
    if is_address and data.format not in ("shards", "synthetic"):
        message = f"is an address, and data.format {data.format} reads folders; write a folder, or data.format shards"
        yield Problem("data.root", message, ("data.format",))
    try:
        urlsplit(data.root)
    except ValueError:  # such as https://[x/y; a folder may contain any text
        if is_address:
            yield Problem("data.root", "is not a valid address; write an address like https://host/folder")
    if "@" in address.partition("/")[0] or "?" in address:
        yield Problem(
            "data.root",
            "contains a user, a password or a query, and every checkpoint stores the address; give credentials through "
            "the environment, ~/.netrc or the cloud's own configuration",
        )
    if data.sampling == "balanced" and data.shuffle_shards is not None:
        message = f"needs images in any order, and balanced data.sampling chooses by class, found {data.shuffle_shards}"
        yield Problem("data.shuffle_shards", f"{message}; write null, or sample by shuffle", ("data.sampling",))


def _progressive(recipe: Recipe) -> Iterator[Problem]:
    section, full = recipe.data.progressive, recipe.data.image_size
    if section is None:
        return
    for name, value, example in (("min_size", section.min_size, 128), ("end_ramp", section.end_ramp, "60ep")):
        if value is None:
            yield Problem(f"data.progressive.{name}", f"is missing: write a value, such as {example}")
    largest = section.max_size or full
    if largest > full:
        message = f"must not be above data.image_size, {full}, the size in validation, found {largest}"
        yield Problem("data.progressive.max_size", message, ("data.image_size",))
    if section.min_size is not None and section.min_size >= largest:
        limit = "data.image_size" if section.max_size is None else "data.progressive.max_size"
        message = f"must be below {limit}, {largest}, found {section.min_size}"
        yield Problem("data.progressive.min_size", message, (limit,))


def _ranges(recipe: Recipe) -> Iterator[Problem]:
    """Yield a problem for each pair whose numbers are in the wrong order, and each area above the whole image."""
    augment, erasing = recipe.augment, recipe.augment.erasing or ErasingSection()
    for key, (low, high), area in (
        ("augment.crop_scale", augment.crop_scale, "a crop"),
        ("augment.crop_ratio", augment.crop_ratio, ""),
        ("augment.erasing.scale", erasing.scale, "a rectangle"),
        ("augment.erasing.ratio", erasing.ratio, ""),
    ):
        if low > high:
            yield Problem(key, f"the first number must not be above the second, found [{low}, {high}]")
        if area and high > 1:
            yield Problem(key, f"{area} is at most the whole image, 1, found {high}")


def _augment(recipe: Recipe) -> Iterator[Problem]:
    policy, jitter = recipe.augment.policy, recipe.augment.color_jitter
    if policy and policy.magnitude is not None and policy.magnitude >= policy.num_magnitude_bins:
        bins = "augment.policy.num_magnitude_bins"
        message = f"must be below {bins}, {policy.num_magnitude_bins}, found {policy.magnitude}"
        yield Problem("augment.policy.magnitude", message, (bins,))
    if jitter and not any((jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)):
        yield Problem("augment.color_jitter", "changes nothing: give brightness, contrast, saturation or hue, or null")
    if recipe.data.format == "synthetic":
        for name in ("policy", "color_jitter", "erasing"):
            if getattr(recipe.augment, name):
                message = "has no effect with data.format synthetic: synthetic images are not augmented; write null"
                yield Problem(f"augment.{name}", message, ("data.format",))
        if recipe.augment.repeats > 1:
            message = "has no effect with data.format synthetic: all copies of a synthetic image are equal; write 1"
            yield Problem("augment.repeats", message, ("data.format",))


def _repeats(recipe: Recipe) -> Iterator[Problem]:
    repeats, total = recipe.augment.repeats, recipe.batch.global_size
    if total % repeats:
        message = f"must divide batch.global_size, {total}, found {repeats}; write {fitting_in_words(recipe)}"
        yield Problem("augment.repeats", message, ("batch.global_size",))


def _mix(recipe: Recipe) -> Iterator[Problem]:
    mix = recipe.mix
    mixes = [name for name, alpha in (("mixup", mix.mixup), ("cutmix", mix.cutmix)) if alpha > 0]
    if mix.off_after is not None and not mixes:
        message = f"has no effect if mixup and CutMix are off, found {mix.off_after}; write null, or set mix.mixup"
        yield Problem("mix.off_after", message, ("mix.mixup", "mix.cutmix"))
    if mixes and recipe.batch.micro_size == 1:
        reason = "needs a second image, and batch.micro_size is 1"
        message = f"{reason}; write {fitting_in_words(recipe)}, or mix.{mixes[0]}=0"
        yield Problem(f"mix.{mixes[0]}", message, ("batch.micro_size",))
