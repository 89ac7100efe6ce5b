"""What the keys of a recipe mean for each other. A key that has no effect beside another is refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterator

from seresnext.errors import RecipeError
from seresnext.recipe.batch_sizes import (
    Settings,
    changes,
    dividing_micro_size,
    fitting_batch,
    fitting_in_words,
    in_words,
    least_micro_size,
    lone_stages,
    multiples_beside,
    smallest_image,
)
from seresnext.recipe.check_images import image_problems
from seresnext.recipe.check_lengths import duration_problems
from seresnext.recipe.problem import Problem, one_of
from seresnext.recipe.schema import Recipe


def cross_field_problems(recipe: Recipe) -> list[Problem]:
    """Every disagreement between the keys of a recipe."""
    checks = (
        _model,
        image_problems,
        _batch,
        _optimizer,
        _schedule,
        _loss,
        _frozen,
        _grad_checkpointing,
        _compress_gradients,
        _measure,
        _evaluation,
        _recalibrate,
        _checkpoint,
        duration_problems,
    )
    return [problem for check in checks for problem in check(recipe)]


def check_world(recipe: Recipe, world_size: int, num_images: int | None = None) -> None:
    """Raise `RecipeError` unless the logical replicas (global_size / micro_size) spread evenly over the processes.

    All checks accept each advice in the message. With `num_images` no advice needs more training images.
    """
    total, micro = recipe.batch.global_size, recipe.batch.micro_size
    automatic = micro == "auto"  # Any number of processes that divides the global batch fits then.
    if total % (world_size if automatic else micro * world_size) == 0:
        return
    advice = []
    if not automatic:
        fitting = [str(count) for count in range(1, total // micro + 1) if total // micro % count == 0]
        advice.append(f"start {one_of(fitting)} processes")
    advice += [f"set {in_words(settings)}" for settings in _sizes_for_world(recipe, world_size, num_images)]
    parts = "" if automatic else f" in micro-batches of {micro} (batch.micro_size)"
    raise RecipeError(
        [
            f"batch.global_size: {total} images cannot be spread over {world_size} processes{parts}; "
            f"{', or '.join(advice) or 'start fewer processes'}"
        ]
    )


def _sizes_for_world(recipe: Recipe, world_size: int, num_images: int | None) -> Iterator[Settings]:
    """Yield settings that fit: a batch near the recipe's, and the nearest batch with the same micro size."""
    total, micro = recipe.batch.global_size, recipe.batch.micro_size
    fitting = fitting_batch(recipe, world_size, num_images)
    if fitting is None:
        return
    yield (changed := changes(recipe, fitting))
    unit = least_micro_size(recipe) if micro == "auto" else micro
    sizes = [size for size in multiples_beside(recipe, unit * world_size) if num_images is None or size <= num_images]
    nearest = min(sizes, key=lambda size: abs(size - total), default=None)
    if nearest is not None and changed != {"batch.global_size": nearest}:
        yield {"batch.global_size": nearest}


def _model(recipe: Recipe) -> Iterator[Problem]:
    model, data = recipe.model, recipe.data
    if model.reset_head and model.weights is None:
        yield Problem(
            "model.reset_head",
            "has no effect without model.weights: a fresh network has a fresh head; set it to false",
            ("model.weights",),
        )
    if model.zero_init_last and model.weights is not None:
        yield Problem(
            "model.zero_init_last",
            "has no effect with model.weights, which replaces what it sets; set it to false",
            ("model.weights",),
        )
    if model.in_channels != 3 and data.format != "synthetic":
        yield Problem(
            "model.in_channels",
            f"image files are read as RGB: must be 3, found {model.in_channels}",
            ("data.format",),
        )
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != model.in_channels:
            yield Problem(
                f"data.{name}",
                f"needs one number per channel, {model.in_channels} (model.in_channels), found {len(values)}",
                ("model.in_channels",),
            )


def _frozen(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    if model.frozen and model.weights is None:
        yield Problem(
            "model.frozen",
            "needs model.weights: stages would keep the random weights they start with; set it to []",
            ("model.weights",),
        )
    if model.drop_path_rate and _all_blocks_frozen(recipe):
        yield Problem(
            "model.drop_path_rate",
            f"has no effect where all of layer1 to layer4 are in model.frozen, found {model.drop_path_rate}; write 0",
            ("model.frozen",),
        )


def _grad_checkpointing(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.runtime.grad_checkpointing:
        return
    if recipe.runtime.compile is True:
        yield Problem(
            "runtime.grad_checkpointing",
            "is for models that are not compiled: what compiled code keeps, it chooses by itself; set it to false, or "
            "runtime.compile to false or auto",
            ("runtime.compile",),
        )
    if _all_blocks_frozen(recipe):
        yield Problem(
            "runtime.grad_checkpointing",
            "has no effect where all of layer1 to layer4 are in model.frozen: no gradient passes them; set it to false",
            ("model.frozen",),
        )


def _compress_gradients(recipe: Recipe) -> Iterator[Problem]:
    if recipe.runtime.compress_gradients != "none" and recipe.runtime.precision == "fp64":
        yield Problem(
            "runtime.compress_gradients",
            "would round the gradients of fp64 to 8 bits; set it to none, or runtime.precision to another",
            ("runtime.precision",),
        )


def _measure(recipe: Recipe) -> Iterator[Problem]:
    runtime = recipe.runtime
    settled = runtime.channels_last != "auto", runtime.compile != "auto" or runtime.grad_checkpointing
    if runtime.measure and all(settled):
        yield Problem(
            "runtime.measure",
            "has nothing to choose: runtime.channels_last is given, and runtime.compile too or with "
            "runtime.grad_checkpointing false; write auto for one of them, or set it to false",
            ("runtime.channels_last", "runtime.compile", "runtime.grad_checkpointing"),
        )


def _all_blocks_frozen(recipe: Recipe) -> bool:
    return {"layer1", "layer2", "layer3", "layer4"} <= set(recipe.model.frozen)


def _batch(recipe: Recipe) -> Iterator[Problem]:
    total, micro = recipe.batch.global_size, recipe.batch.micro_size
    if micro != "auto" and total % micro:
        choices = [one_of([str(size) for size in multiples_beside(recipe, micro)] or ["a smaller batch.micro_size"])]
        if total % recipe.augment.repeats == 0 and (smaller := dividing_micro_size(recipe)):
            choices.append(f"batch.micro_size={smaller}")
        yield Problem(
            "batch.global_size",
            f"must be a multiple of batch.micro_size, {micro}, found {total}; write {', or '.join(choices)}",
            ("batch.micro_size",),
        )
    if micro == 1 and (alone := lone_stages(recipe)):
        size = smallest_image(recipe)
        yield Problem(
            "batch.micro_size",
            f"must be at least 2, found 1: of one image of {size} pixels a side {one_of(alone)} leaves one pixel, and "
            f"BatchNorm's variance needs more; write {fitting_in_words(recipe)}",
            ("data.progressive.min_size" if size < recipe.data.image_size else "data.image_size",),
        )


def _optimizer(recipe: Recipe) -> Iterator[Problem]:
    optimizer = recipe.optimizer
    if optimizer.nesterov and optimizer.momentum == 0:
        yield Problem(
            "optimizer.nesterov", "needs optimizer.momentum above 0; set it to false", ("optimizer.momentum",)
        )
    if not optimizer.decay_norm_and_bias and optimizer.weight_decay == 0:
        yield Problem(
            "optimizer.decay_norm_and_bias",
            "false has no effect with optimizer.weight_decay 0; set it to true",
            ("optimizer.weight_decay",),
        )


def _schedule(recipe: Recipe) -> Iterator[Problem]:
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    because = ("schedule.name",)
    for name, value in (("every", schedule.every), ("factor", schedule.factor)):
        if schedule.name == "step" and value is None:
            example = "30ep" if name == "every" else "0.1"
            yield Problem(f"schedule.{name}", f"is missing: schedule.name step needs it, such as {example}", because)
        if schedule.name != "step" and value is not None:
            yield Problem(
                f"schedule.{name}",
                f"is for schedule.name step and has no effect with {schedule.name}, found {value}; "
                f"set it to null, or give the whole section, such as 'schedule={{name: cosine}}'",
                because,
            )
    if schedule.name == "step" and schedule.final_lr != 0:
        yield Problem(
            "schedule.final_lr",
            f"is for schedule.name cosine or linear and has no effect with {schedule.name}, found {schedule.final_lr}",
            because,
        )
    if schedule.name != "step" and schedule.final_lr > peak:
        yield Problem(
            "schedule.final_lr",
            f"must not be above optimizer.lr, {peak}, found {schedule.final_lr}",
            ("optimizer.lr", "schedule.name"),
        )


def _loss(recipe: Recipe) -> Iterator[Problem]:
    loss, mix = recipe.loss, recipe.mix
    threshold = loss.target_threshold
    if threshold is None:
        return
    if loss.name != "bce":
        yield Problem(
            "loss.target_threshold",
            f"is for loss.name bce and has no effect with {loss.name}, found {threshold}; set it to null",
            ("loss.name",),
        )
    elif not mix.mixup and not mix.cutmix:
        yield Problem(
            "loss.target_threshold",
            f"does nothing but undo label smoothing where nothing is mixed, found {threshold}; set it to null, or "
            "mix.mixup or mix.cutmix",
            ("mix.mixup", "mix.cutmix"),
        )


def _evaluation(recipe: Recipe) -> Iterator[Problem]:
    if recipe.evaluation.weights == "ema" and recipe.ema is None:
        yield Problem(
            "evaluation.weights",
            "is ema, but ema is null, so there is no average; write auto or model, or give the ema section",
            ("ema",),
        )


def _recalibrate(recipe: Recipe) -> Iterator[Problem]:
    if recipe.evaluation.recalibrate is None:
        return
    if recipe.early_stop is not None:
        yield Problem(
            "evaluation.recalibrate",
            "comes before the last validation, and with early_stop none is known to be the last before it is done; "
            "set one of the two to null",
            ("early_stop",),
        )
    if _all_blocks_frozen(recipe) and "layer0" in recipe.model.frozen:
        yield Problem(
            "evaluation.recalibrate",
            "has no effect where all stages are in model.frozen and keep their statistics; set it to null",
            ("model.frozen",),
        )


def _checkpoint(recipe: Recipe) -> Iterator[Problem]:
    every, keep_every = recipe.checkpoint.every, recipe.checkpoint.keep_every
    if keep_every and (keep_every.unit != every.unit or keep_every.count % every.count):
        yield Problem(
            "checkpoint.keep_every",
            f"must be a multiple of checkpoint.every, {every}, found {keep_every}: what is not saved cannot be kept",
            ("checkpoint.every",),
        )
