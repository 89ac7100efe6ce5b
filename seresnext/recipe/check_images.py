"""Checks of the keys about images against each other: `data`, `augment` and `mix`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from urllib.parse import urlsplit

from seresnext.recipe.batch_sizes import fitting_in_words, least_micro_size, multiples_near
from seresnext.recipe.explain import Problem, one_of
from seresnext.recipe.schema import Recipe


def image_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield every disagreement between the keys of `data`, `augment` and `mix`."""
    for check in (_data, _progressive, _crops, _policy, _color_jitter, _erasing, _synthetic, _repeats, _mix):
        yield from check(recipe)


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if "://" in data.root and data.format not in ("shards", "synthetic"):
        yield Problem(
            "data.root",
            f"is an address, and data.format {data.format} reads folders; write a folder, or set data.format to "
            "shards, the only format that is read from a server",
            ("data.format",),
        )
    address = data.root.partition("://")[2]
    if not _is_address(data.root):
        yield Problem("data.root", "is not a valid address; write an address like https://host/folder")
    if "@" in address.partition("/")[0] or "?" in address:
        yield Problem(
            "data.root",
            "contains a user, a password or a query, and every checkpoint stores the address; give credentials through "
            "the environment, ~/.netrc or the cloud's own configuration",
        )


def _is_address(root: str) -> bool:
    """Return False for an address that urlsplit refuses, such as `https://[x/y`. A folder may contain any text."""
    try:
        urlsplit(root)
    except ValueError:
        return "://" not in root
    return True


def _range_problem(key: str, bounds: tuple[float, float], most: str = "") -> Iterator[Problem]:
    """Yield a problem if the lower bound is above the upper one. `most` names an area that is at most 1."""
    low, high = bounds
    if low > high:
        yield Problem(key, f"the first number must not be above the second, found [{low}, {high}]")
    if most and high > 1:
        yield Problem(key, f"{most} is at most the whole image, 1, found {high}")


def _crops(recipe: Recipe) -> Iterator[Problem]:
    yield from _range_problem("augment.crop_scale", recipe.augment.crop_scale, "a crop")
    yield from _range_problem("augment.crop_ratio", recipe.augment.crop_ratio)


def _progressive(recipe: Recipe) -> Iterator[Problem]:
    section, full = recipe.data.progressive, recipe.data.image_size
    if section is None:
        return
    for name, value, example in (("min_size", section.min_size, 128), ("end_ramp", section.end_ramp, "60ep")):
        if value is None:
            yield Problem(f"data.progressive.{name}", f"is missing: write a value, such as {example}")
    largest = section.max_size or full
    if largest > full:
        yield Problem(
            "data.progressive.max_size",
            f"must not be above data.image_size, {full}, the size in validation, found {largest}",
            ("data.image_size",),
        )
    if section.min_size is not None and section.min_size >= largest:
        limit = "data.image_size" if section.max_size is None else "data.progressive.max_size"
        yield Problem(
            "data.progressive.min_size", f"must be below {limit}, {largest}, found {section.min_size}", (limit,)
        )


def _policy(recipe: Recipe) -> Iterator[Problem]:
    policy = recipe.augment.policy
    if policy and policy.magnitude is not None and policy.magnitude >= policy.num_magnitude_bins:
        yield Problem(
            "augment.policy.magnitude",
            f"must be below augment.policy.num_magnitude_bins, {policy.num_magnitude_bins}, found {policy.magnitude}",
            ("augment.policy.num_magnitude_bins",),
        )


def _color_jitter(recipe: Recipe) -> Iterator[Problem]:
    jitter = recipe.augment.color_jitter
    if jitter and not any((jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)):
        yield Problem("augment.color_jitter", "changes nothing: give brightness, contrast, saturation or hue, or null")


def _erasing(recipe: Recipe) -> Iterator[Problem]:
    if erasing := recipe.augment.erasing:
        yield from _range_problem("augment.erasing.scale", erasing.scale, "a rectangle")
        yield from _range_problem("augment.erasing.ratio", erasing.ratio)


def _synthetic(recipe: Recipe) -> Iterator[Problem]:
    augment = recipe.augment
    if recipe.data.format != "synthetic":
        return
    for name in ("policy", "color_jitter", "erasing"):
        if getattr(augment, name):
            yield Problem(
                f"augment.{name}",
                "has no effect with data.format synthetic: synthetic images are not augmented; write null",
                ("data.format",),
            )
    if augment.repeats > 1:
        yield Problem(
            "augment.repeats",
            "has no effect with data.format synthetic: all copies of a synthetic image are equal; write 1",
            ("data.format",),
        )


def _repeats(recipe: Recipe) -> Iterator[Problem]:
    repeats, total, micro = recipe.augment.repeats, recipe.batch.global_size, recipe.batch.micro_size
    if total % repeats and (total % micro or micro < least_micro_size(recipe)):
        # batch.global_size has to change, too. A divisor of the present size may not divide the new size.
        if micro < least_micro_size(recipe):
            advice = fitting_in_words(recipe)
        elif sizes := [str(size) for size in multiples_near(recipe, micro)]:
            advice = f"batch.global_size {one_of(sizes)}"
        else:
            advice = "a smaller number"
        yield Problem(
            "augment.repeats",
            f"must divide batch.global_size, {total}, found {repeats}; write {advice}",
            ("batch.global_size",),
        )
    elif total % repeats:
        small = [number for number in range(1, min(math.isqrt(total), 10**6) + 1) if total % number == 0]
        choices = sorted({*small, *(total // number for number in small)})
        fitting = [str(number) for number in choices if number < repeats][-1:]
        fitting += [str(number) for number in choices if number > repeats][:1]
        yield Problem(
            "augment.repeats",
            f"must divide batch.global_size, {total}, found {repeats}; write {one_of(fitting)}, or another global_size",
            ("batch.global_size",),
        )


def _mix(recipe: Recipe) -> Iterator[Problem]:
    mix = recipe.mix
    mixes = [name for name, alpha in (("mixup", mix.mixup), ("cutmix", mix.cutmix)) if alpha > 0]
    if mix.off_after is not None and not mixes:
        yield Problem(
            "mix.off_after",
            f"has no effect if mixup and CutMix are off, found {mix.off_after}; write null, or switch on "
            "mix.mixup or mix.cutmix",
            ("mix.mixup", "mix.cutmix"),
        )
    if mixes and recipe.batch.micro_size == 1:
        yield Problem(
            f"mix.{mixes[0]}",
            f"needs a second image, and batch.micro_size is 1; write {fitting_in_words(recipe)}, or mix.{mixes[0]}=0",
            ("batch.micro_size",),
        )
