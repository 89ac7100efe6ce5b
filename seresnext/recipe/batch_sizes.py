"""Batch sizes that fit the recipe, the number of processes and the number of images: advice for messages."""

from __future__ import annotations

import math

from seresnext.recipe.schema import MAX_GLOBAL_SIZE, Recipe

# Side of the largest image that a stage reduces to one pixel.
_ONE_PIXEL = {"layer3": 18, "layer4": 34}


def lone_stages(recipe: Recipe) -> list[str]:
    """Return the stages where one image gives BatchNorm a single value per channel, and so no variance."""
    size = smallest_image(recipe)
    return [stage for stage, side in _ONE_PIXEL.items() if size <= side and stage not in recipe.model.never_trained]


def smallest_image(recipe: Recipe) -> int:
    """Return the side of the smallest training image."""
    section = recipe.data.progressive
    return min(recipe.data.image_size, (section and section.min_size) or recipe.data.image_size)


def least_micro_size(recipe: Recipe) -> int:
    """Return 2 if mixing or BatchNorm needs two images in a micro-batch, else 1."""
    return 2 if recipe.mix.mixup or recipe.mix.cutmix or lone_stages(recipe) else 1


def fitting_batch(recipe: Recipe, world_size: int = 1, num_images: int | None = None) -> dict[str, int] | None:
    """Return sizes near the recipe's that all checks accept for so many processes and training images, or None.

    The global size stays if possible, with at least half of the micro size. Otherwise smaller global sizes are tried
    first, then larger ones.
    """
    total, micro, repeats = recipe.batch.global_size, recipe.batch.micro_size, recipe.augment.repeats
    most = MAX_GLOBAL_SIZE if num_images is None else min(num_images, MAX_GLOBAL_SIZE)
    least = least_micro_size(recipe)
    if total <= most and total % repeats == total % world_size == 0:
        share = total // world_size
        largest = min(micro, share)
        for size in range(largest, max(least, -(-largest // 2)) - 1, -1):
            if share % size == 0:
                return {"batch.global_size": total, "batch.micro_size": size}
    sizes = [max(micro, least)]
    while sizes[-1] > least:
        sizes.append(max(sizes[-1] // 2, least))
    for limit in (min(total, most), most):
        for size in sizes:
            unit = math.lcm(size * world_size, repeats)
            if unit <= limit:
                fitting = limit // unit * unit if limit <= total else unit
                return {"batch.global_size": fitting, "batch.micro_size": size}
    return None


def in_words(recipe: Recipe, sizes: dict[str, int]) -> str:
    """Return the sizes that differ from the recipe's, as `batch.global_size=32 and batch.micro_size=16`."""
    own = {"batch.global_size": recipe.batch.global_size, "batch.micro_size": recipe.batch.micro_size}
    return " and ".join(f"{key}={value}" for key, value in sizes.items() if value != own[key])
