"""Checks of keys against each other. A key without effect is refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from seresnext.errors import RecipeError
from seresnext.recipe.batch_sizes import changes, fitting_batch, fitting_in_words, in_words, lone_stages, smallest_image
from seresnext.recipe.check_images import image_problems
from seresnext.recipe.check_lengths import duration_problems
from seresnext.recipe.explain import Problem, one_of
from seresnext.recipe.reader import write_value
from seresnext.recipe.schema import AUTO_CLASSES, ONLY_FOR, Recipe

# Keys of image files. Any recipe may have these keys, since `--set data.format=synthetic` works with any recipe.
_FILE_KEYS = {
    "augment": ("crop_scale", "crop_ratio", "flip", "interpolation"),
    "data": ("background", "cache", "exif_rotation", "max_pixels", "on_error", "sampling", "train_split", "val_split"),
    "evaluation": ("crop_pct", "interpolation"),
}


def cross_field_problems(recipe: Recipe) -> list[Problem]:
    """Return every disagreement between the keys of a recipe."""
    checks = (_model, image_problems, _batch, _optimizer, _loss, _runtime, _evaluation, _checkpoint, duration_problems)
    return [*_limited_keys(recipe, unused=False), *(problem for check in checks for problem in check(recipe))]


def unused_settings(recipe: Recipe, origins: Mapping[str, str]) -> Iterator[Problem]:
    """Yield every value without effect that a user wrote for a new run. `origins` is as in `LoadedRecipe`.

    The recipe in a checkpoint may have such values: earlier versions accepted them.
    """
    yield from _limited_keys(recipe, unused=True)
    if recipe.data.format == "synthetic":
        reason = "synthetic images have no files and are not augmented; remove the key"
        for key in (f"{section}.{name}" for section, names in _FILE_KEYS.items() for name in names):
            if origins.get(key) == "--set":
                yield Problem(key, f"has no effect with data.format synthetic: {reason}", ("data.format",))
    yield from _smoothing(recipe)


def _limited_keys(recipe: Recipe, unused: bool) -> Iterator[Problem]:
    """Yield the missing keys of ONLY_FOR, or the keys of ONLY_FOR without effect if `unused`."""
    for key, (other, names, example) in ONLY_FOR.items():
        path, _, name = key.rpartition(".")
        section: Any = reduce(getattr, path.split("."), recipe)
        if section is None:
            continue
        values, default = section.model_dump(mode="json"), type(section)().model_dump(mode="json")[name]
        value, chosen, other = values[name], values[other], f"{path}.{other}"
        has_effect = chosen in names.split()
        if has_effect and value is None and example and not unused:
            yield Problem(key, f"is missing: {other} {chosen} needs a value, such as {example}", (other,))
        if not has_effect and value != default and unused:
            wanted = f"{other} {one_of(names.split())}"
            message = f"is for {wanted} and has no effect with {chosen}, found {write_value(value)}"
            fix = f"write the default, {write_value(default)}, or remove the key"
            yield Problem(key, f"{message}; {fix}", (other,))


def _smoothing(recipe: Recipe) -> Iterator[Problem]:
    """Yield a problem if a threshold makes label smoothing useless.

    The threshold turns every smoothed target into 0 or 1. Smoothing then only moves the threshold (share: part of an
    image in the mix, s: smoothing, K: classes):

    share (1 - s) + s / K > threshold  <=>  share > (threshold - s / K) / (1 - s)
    """
    smoothing, threshold = recipe.loss.label_smoothing, recipe.loss.target_threshold
    if recipe.loss.name != "bce" or threshold is None or not smoothing or not _is_mixed(recipe):
        return  # `_loss` reports the other cases.
    same = (threshold - smoothing / (recipe.model.num_classes or 1000)) / (1 - smoothing)
    hint = f" (a threshold of {same:.3g} then gives the same targets)" if 0 <= same < 1 else ""
    yield Problem(
        "loss.label_smoothing",
        f"has no effect except to move loss.target_threshold, {threshold}, which makes every target 0 or 1, found "
        f"{smoothing}; write 0{hint}",
        ("loss.target_threshold",),
    )


def _is_mixed(recipe: Recipe) -> bool:
    return bool(recipe.mix.mixup or recipe.mix.cutmix)


def check_world(recipe: Recipe, world_size: int, num_images: int | None = None) -> None:
    """Raise `RecipeError` unless the logical replicas (global_size / micro_size) split evenly over the processes.

    All checks accept each advice in the message. With `num_images` no advice needs more training images.
    """
    total, micro = recipe.batch.global_size, recipe.batch.micro_size
    if total % (micro * world_size) == 0:
        return
    fitting = [str(count) for count in range(1, total // micro + 1) if total // micro % count == 0]
    advice = [f"start {one_of(fitting)} processes"]
    if sizes := fitting_batch(recipe, world_size, num_images):
        advice.append(f"set {in_words(changes(recipe, sizes))}")
    problem = f"{total} images cannot be split over {world_size} processes in micro-batches of {micro}"
    raise RecipeError([f"batch.global_size: {problem} (batch.micro_size); {', or '.join(advice)}"])


def _model(recipe: Recipe) -> Iterator[Problem]:
    model, data = recipe.model, recipe.data
    if model.num_classes == AUTO_CLASSES and model.weights is not None and not model.reset_head:
        message = "needs a new head, and model.weights has one; set model.reset_head=true, or write the number"
        yield Problem("model.num_classes", message, ("model.weights", "model.reset_head"))
    if model.num_classes == AUTO_CLASSES and data.format == "synthetic":
        message = "needs class folders, and synthetic images have none; write a number"
        yield Problem("model.num_classes", message, ("data.format",))
    if model.reset_head and model.weights is None:
        message = "has no effect without model.weights: a new network has a new head anyway; write false"
        yield Problem("model.reset_head", message, ("model.weights",))
    if model.zero_init_last and model.weights is not None:
        message = "has no effect with model.weights: the loaded weights replace the zeros; write false"
        yield Problem("model.zero_init_last", message, ("model.weights",))
    if model.frozen_until and not model.frozen:
        message = f"has no effect without model.frozen, found {model.frozen_until}; write null, or name the stages"
        yield Problem("model.frozen_until", message, ("model.frozen",))
    if model.frozen and model.weights is None:
        message = "needs model.weights: without loaded weights the stages would stay random; write []"
        yield Problem("model.frozen", message, ("model.weights",))
    if model.drop_path_rate and _are_blocks_frozen(recipe):
        message = f"has no effect if all of layer1 to layer4 are in model.frozen, found {model.drop_path_rate}; write 0"
        yield Problem("model.drop_path_rate", message, ("model.frozen",))
    if model.in_channels != 3 and data.format != "synthetic":
        message = f"must be 3, since image files are read as RGB, found {model.in_channels}"
        yield Problem("model.in_channels", message, ("data.format",))
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != model.in_channels:
            message = f"needs one number per channel, {model.in_channels} (model.in_channels), found {len(values)}"
            yield Problem(f"data.{name}", message, ("model.in_channels",))


def _are_blocks_frozen(recipe: Recipe) -> bool:
    return {"layer1", "layer2", "layer3", "layer4"} <= set(recipe.model.never_trained)


def _batch(recipe: Recipe) -> Iterator[Problem]:
    total, micro = recipe.batch.global_size, recipe.batch.micro_size
    if total % micro:
        advice = fitting_in_words(recipe)
        message = f"must be a multiple of batch.micro_size, {micro}, found {total}; write {advice}"
        yield Problem("batch.global_size", message, ("batch.micro_size",))
    if micro == 1 and (alone := lone_stages(recipe)):
        size = smallest_image(recipe)
        yield Problem(
            "batch.micro_size",
            f"must be at least 2, found 1: {one_of(alone)} reduces one image of {size}x{size} pixels to one pixel, and "
            f"BatchNorm's variance needs more; write {fitting_in_words(recipe)}",
            ("data.progressive.min_size" if size < recipe.data.image_size else "data.image_size",),
        )


def _optimizer(recipe: Recipe) -> Iterator[Problem]:
    optimizer, schedule = recipe.optimizer, recipe.schedule
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        yield Problem("optimizer.nesterov", "needs optimizer.momentum above 0; write false", ("optimizer.momentum",))
    if not optimizer.decay_norm_and_bias and optimizer.weight_decay == 0:
        message = "has no effect with optimizer.weight_decay 0, found false; write true"
        yield Problem("optimizer.decay_norm_and_bias", message, ("optimizer.weight_decay",))
    if optimizer.head_lr == optimizer.lr:
        message = f"has no effect with the same optimizer.lr, found {optimizer.head_lr}; write null"
        yield Problem("optimizer.head_lr", message, ("optimizer.lr",))
    if len(set(recipe.model.never_trained)) == 5:  # The classifier trains alone.
        for key, usual, fix in (("head_lr", None, "null, and set optimizer.lr"), ("layer_decay", 1.0, "1")):
            if (value := getattr(optimizer, key)) != usual:
                message = f"has no effect if all stages are in model.frozen, found {value}; write {fix}"
                yield Problem(f"optimizer.{key}", message, ("model.frozen",))
    if schedule.name != "step" and schedule.final_lr > optimizer.lr:
        message = f"must not be above optimizer.lr, {optimizer.lr}, found {schedule.final_lr}"
        yield Problem("schedule.final_lr", message, ("optimizer.lr", "schedule.name"))


def _loss(recipe: Recipe) -> Iterator[Problem]:
    threshold = recipe.loss.target_threshold
    if recipe.loss.class_weights == recipe.data.sampling == "balanced":
        message = "is balanced like data.sampling: rare classes would count twice; write null, or sample by shuffle"
        yield Problem("loss.class_weights", message, ("data.sampling",))
    if recipe.loss.name == "bce" and threshold is not None and not _is_mixed(recipe):
        message = f"only undoes label smoothing if mixup and CutMix are off, found {threshold}; write null"
        yield Problem("loss.target_threshold", message, ("mix.mixup", "mix.cutmix"))


def _runtime(recipe: Recipe) -> Iterator[Problem]:
    runtime = recipe.runtime
    if runtime.grad_checkpointing and runtime.compile is True:
        message = "is for models that are not compiled; write false, or set runtime.compile to false or auto"
        yield Problem("runtime.grad_checkpointing", message, ("runtime.compile",))
    if runtime.grad_checkpointing and _are_blocks_frozen(recipe):
        message = "has no effect if all of layer1 to layer4 are in model.frozen, without a backward pass; write false"
        yield Problem("runtime.grad_checkpointing", message, ("model.frozen",))
    if runtime.compress_gradients != "none" and runtime.precision == "fp64":
        message = "would round the gradients of fp64 to 8 bits; write none, or change runtime.precision"
        yield Problem("runtime.compress_gradients", message, ("runtime.precision",))


def _evaluation(recipe: Recipe) -> Iterator[Problem]:
    evaluation = recipe.evaluation
    if evaluation.weights == "ema" and recipe.ema is None:
        message = "is ema, but ema is null, so the run has no average; write auto or model, or give the ema section"
        yield Problem("evaluation.weights", message, ("ema",))
    if evaluation.recalibrate and recipe.early_stop:
        message = "needs a last validation that is known in advance, unlike with early_stop; write null for one"
        yield Problem("evaluation.recalibrate", message, ("early_stop",))
    if evaluation.recalibrate and len(set(recipe.model.never_trained)) == 5:
        message = "has no effect if all stages are in model.frozen: BatchNorm statistics then stay; write null"
        yield Problem("evaluation.recalibrate", message, ("model.frozen",))


def _checkpoint(recipe: Recipe) -> Iterator[Problem]:
    every, keep_every = recipe.checkpoint.every, recipe.checkpoint.keep_every
    if keep_every and (keep_every.unit != every.unit or keep_every.count % every.count):
        message = f"must be a multiple of checkpoint.every, {every}, found {keep_every}: only saved ones can be kept"
        yield Problem("checkpoint.keep_every", message, ("checkpoint.every",))
