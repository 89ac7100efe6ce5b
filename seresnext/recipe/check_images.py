"""What the keys about images mean for each other: where they come from, how they are augmented and mixed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from urllib.parse import urlsplit

from seresnext.recipe.batch_sizes import fitting_in_words, least_micro_size, multiples_beside
from seresnext.recipe.problem import Problem, one_of
from seresnext.recipe.schema import Recipe


def image_problems(recipe: Recipe) -> Iterator[Problem]:
    """Every disagreement between the keys of `data`, `augment` and `mix`."""
    for check in (_data, _progressive, _augment, _retouch, _repeats, _mix):
        yield from check(recipe)


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data.format == "synthetic" and data.synthetic_images is None:
        yield Problem(
            "data.synthetic_images",
            "is missing: data.format synthetic needs to know how many images to make up",
            ("data.format",),
        )
    if data.format != "synthetic" and data.synthetic_images is not None:
        yield Problem(
            "data.synthetic_images",
            f"has no effect with data.format {data.format}; set it to null, or data.format to synthetic",
            ("data.format",),
        )

    if data.format != "shards":
        if data.shuffle_shards is not None:
            yield Problem(
                "data.shuffle_shards", f"has no effect with data.format {data.format}; set it to null", ("data.format",)
            )
        if "://" in data.root and data.format != "synthetic":
            yield Problem(
                "data.root",
                f"is an address, and data.format {data.format} reads folders; only shards are read from a server",
                ("data.format",),
            )
    address = data.root.partition("://")[2]
    if not _is_address(data.root):
        yield Problem("data.root", "is no address that can be read; write it like https://host/folder")
    if "@" in address.partition("/")[0] or "?" in address:
        yield Problem(
            "data.root",
            "has a user, a password or a query in it, and is stored in every checkpoint; give credentials through the "
            "environment, ~/.netrc or the cloud's own configuration",
        )


def _is_address(root: str) -> bool:
    """False for what looks like an address and has brackets in its host that are not those of a number."""
    try:
        urlsplit(root)
    except ValueError:
        return "://" not in root
    return True


def _augment(recipe: Recipe) -> Iterator[Problem]:
    for name, (low, high) in (("crop_scale", recipe.augment.crop_scale), ("crop_ratio", recipe.augment.crop_ratio)):
        if low > high:
            yield Problem(f"augment.{name}", f"the first number must not be above the second, found [{low}, {high}]")
    if recipe.augment.crop_scale[1] > 1:
        yield Problem(
            "augment.crop_scale", f"a crop is at most the whole image, 1, found {recipe.augment.crop_scale[1]}"
        )


def _progressive(recipe: Recipe) -> Iterator[Problem]:
    section, full = recipe.data.progressive, recipe.data.image_size
    if section is None:
        return
    for name, value, example in (("min_size", section.min_size, 128), ("end_ramp", section.end_ramp, "60ep")):
        if value is None:
            yield Problem(f"data.progressive.{name}", f"is missing: progressive sizes need it, such as {example}")
    largest = section.max_size or full
    if largest > full:
        yield Problem(
            "data.progressive.max_size",
            f"must not be above data.image_size, {full}, the size of evaluation, found {largest}",
            ("data.image_size",),
        )
    if section.min_size is not None and section.min_size >= largest:
        because = "data.image_size" if section.max_size is None else "data.progressive.max_size"
        yield Problem(
            "data.progressive.min_size", f"must be below {because}, {largest}, found {section.min_size}", (because,)
        )


def _retouch(recipe: Recipe) -> Iterator[Problem]:
    policy, jitter, erasing = recipe.augment.policy, recipe.augment.color_jitter, recipe.augment.erasing
    if policy and policy.name == "randaugment":
        for name, value, usual in (("num_ops", policy.num_ops, 2), ("magnitude", policy.magnitude, 9)):
            if value is None:
                yield Problem(f"augment.policy.{name}", f"is missing: randaugment needs it, such as {usual}")
        if policy.magnitude is not None and policy.magnitude >= policy.num_magnitude_bins:
            yield Problem(
                "augment.policy.magnitude",
                f"must be below augment.policy.num_magnitude_bins, {policy.num_magnitude_bins}, "
                f"found {policy.magnitude}",
                ("augment.policy.num_magnitude_bins",),
            )
    if policy and policy.name == "trivialaugment":
        for name, value in (("num_ops", policy.num_ops), ("magnitude", policy.magnitude)):
            if value is not None:
                yield Problem(
                    f"augment.policy.{name}",
                    f"is for randaugment and has no effect with {policy.name}, found {value}; set it to null",
                    ("augment.policy.name",),
                )
    if jitter and not any((jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)):
        yield Problem("augment.color_jitter", "changes nothing: give brightness, contrast, saturation or hue, or null")
    if erasing:
        for name, (low, high) in (("scale", erasing.scale), ("ratio", erasing.ratio)):
            if low > high:
                yield Problem(
                    f"augment.erasing.{name}", f"the first number must not be above the second, found [{low}, {high}]"
                )
        if erasing.scale[1] > 1:
            yield Problem("augment.erasing.scale", f"a box is at most the whole image, 1, found {erasing.scale[1]}")
    if recipe.data.format == "synthetic":
        for name, section in (("policy", policy), ("color_jitter", jitter), ("erasing", erasing)):
            if section:
                yield Problem(
                    f"augment.{name}",
                    "has no effect with data.format synthetic: made-up images are not augmented; set it to null",
                    ("data.format",),
                )


def _repeats(recipe: Recipe) -> Iterator[Problem]:
    repeats, total, micro = recipe.augment.repeats, recipe.batch.global_size, recipe.batch.micro_size
    if total % repeats and micro != "auto" and (total % micro or micro < least_micro_size(recipe)):
        # batch.global_size has to change, too, and a divisor of the present size may not divide the new size.
        if micro < least_micro_size(recipe):
            advice = fitting_in_words(recipe)
        elif sizes := [str(size) for size in multiples_beside(recipe, micro)]:
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
    if repeats > 1 and recipe.data.format == "synthetic":
        yield Problem(
            "augment.repeats",
            "has no effect with data.format synthetic: copies of a made-up image are all the same; set it to 1",
            ("data.format",),
        )


def _mix(recipe: Recipe) -> Iterator[Problem]:
    mix = recipe.mix
    mixes = [name for name, alpha in (("mixup", mix.mixup), ("cutmix", mix.cutmix)) if alpha > 0]
    if mix.off_after is not None and not mixes:
        yield Problem(
            "mix.off_after",
            f"has no effect where nothing is mixed, found {mix.off_after}; set it to null, or mix.mixup or mix.cutmix",
            ("mix.mixup", "mix.cutmix"),
        )
    if mixes and recipe.batch.micro_size == 1:
        yield Problem(
            f"mix.{mixes[0]}",
            f"has no effect with batch.micro_size 1: there is no other image; write {fitting_in_words(recipe)}, or "
            f"mix.{mixes[0]}=0",
            ("batch.micro_size",),
        )
