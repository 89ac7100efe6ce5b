"""Checks of keys against each other. A key without effect is refused, not ignored.

Durations in epochs and in steps can be compared only when the steps of an epoch are known. Durations are checked
twice: when the recipe is read, and by the run. A setting that would take effect after the end of the run is a notice
and not an error, so that `--set length=3st` turns any recipe into a short test.
"""

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any
from urllib.parse import urlsplit

from seresnext.durations import Duration
from seresnext.errors import RecipeError
from seresnext.recipe.explain import Problem, one_of
from seresnext.recipe.reader import write_value
from seresnext.recipe.schema import AUTO_CLASSES, MAX_GLOBAL_SIZE, ONLY_FOR, ProgressiveSection, Recipe

# Side of the largest image that a stage reduces to one pixel.
_ONE_PIXEL = {"layer3": 18, "layer4": 34}


def cross_field_problems(recipe: Recipe, is_new: bool) -> Iterator[Problem]:
    """Yield every disagreement between the keys of a recipe, and every value without effect if the recipe `is_new`.

    The recipe in a checkpoint may have values without effect: earlier versions accepted them.
    """
    for check in (_missing, _model, _above_limit, _data, _batch, _training, _durations):
        yield from check(recipe)
    if is_new:
        yield from _unused(recipe)


def _missing(recipe: Recipe) -> Iterator[Problem]:
    for other, chosen, key, example in (
        ("augment.policy.name", "randaugment", "augment.policy.num_ops", "2"),
        ("augment.policy.name", "randaugment", "augment.policy.magnitude", "9"),
        ("data.format", "synthetic", "data.synthetic_images", "5000"),
        ("schedule.name", "step", "schedule.every", "30ep"),
        ("schedule.name", "step", "schedule.factor", "0.1"),
        ("data.progressive", "", "data.progressive.min_size", "128"),
        ("data.progressive", "", "data.progressive.end_ramp", "60ep"),
    ):
        if (value := _at(recipe, other)) and (not chosen or value == chosen) and _at(recipe, key) is None:
            needs = f"{other} {chosen}".strip()
            yield Problem(key, f"is missing: {needs} needs a value, such as {example}", (other,))


def _above_limit(recipe: Recipe) -> Iterator[Problem]:
    for key, relation, other in (
        ("augment.policy.magnitude", "below", "augment.policy.num_magnitude_bins"),
        ("data.progressive.max_size", "at most", "data.image_size"),
        ("data.progressive.min_size", "below", "data.image_size"),
        ("data.progressive.min_size", "below", "data.progressive.max_size"),
        ("schedule.final_lr", "at most", "optimizer.lr"),
    ):
        value, limit = _at(recipe, key), _at(recipe, other)
        if value is not None and limit is not None and (value > limit or (value == limit and relation == "below")):
            yield Problem(key, f"must be {relation} {other}, {limit}, found {value}", (other,))


def _at(recipe: Recipe, key: str) -> Any:
    """Return the section or value of a dotted key, or None in a section that is null."""
    return reduce(lambda section, name: section and getattr(section, name), key.split("."), recipe)


def _unused(recipe: Recipe) -> Iterator[Problem]:
    """Yield a problem for each key without effect with another value than the default."""
    for key, reason, related in _without_effect(recipe):
        path, _, name = key.rpartition(".")
        section = _at(recipe, path)
        value, default = (each.model_dump(mode="json")[name] for each in (section, type(section).model_construct()))
        if value != default:
            fix = f"write the default, {write_value(default)}, or remove the key"
            yield Problem(key, f"has no effect {reason}, found {write_value(value)}; {fix}", tuple(related.split()))
    loss = recipe.loss
    if loss.name == "bce" and loss.target_threshold is not None and loss.label_smoothing and _is_mixed(recipe):
        message = "has no effect except to move loss.target_threshold, which makes every target 0 or 1, found"
        yield Problem("loss.label_smoothing", f"{message} {loss.label_smoothing}; write 0", ("loss.target_threshold",))


def _without_effect(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield each key without effect, the reason, and the keys that are the reason."""
    model, optimizer, augment = recipe.model, recipe.optimizer, recipe.augment
    for other, names, keys in ONLY_FOR:
        if (chosen := _at(recipe, other)) and chosen not in names.split():
            for key in keys.split():
                yield key, f"with {other} {chosen}, only with {one_of(names.split())}", other
    blocks, stages = {"layer1", "layer2", "layer3", "layer4"}, set(model.never_trained)
    is_threshold_idle = recipe.loss.name == "bce" and not _is_mixed(recipe)
    mixes, jitter = "mix.mixup mix.cutmix", augment.color_jitter
    augments = "augment.policy augment.color_jitter augment.erasing augment.repeats"
    head = "optimizer.head_lr optimizer.layer_decay evaluation.recalibrate"
    for has_no_effect, keys, reason, related in (
        (not model.weights, "model.reset_head", "without model.weights", "model.weights"),
        (model.weights, "model.zero_init_last", "with model.weights", "model.weights"),
        (not model.frozen, "model.frozen_until", "without model.frozen", "model.frozen"),
        (blocks <= stages, "model.drop_path_rate", "if layer1 to layer4 are in model.frozen", "model.frozen"),
        (blocks <= stages, "runtime.grad_checkpointing", "if layer1 to layer4 are in model.frozen", "model.frozen"),
        (len(stages) == 5, head, "if all stages are in model.frozen", "model.frozen"),
        (optimizer.head_lr == optimizer.lr, "optimizer.head_lr", "with the same optimizer.lr", "optimizer.lr"),
        (not optimizer.weight_decay, "optimizer.decay_norm_and_bias", "without weight decay", "optimizer.weight_decay"),
        (not _is_mixed(recipe), "mix.off_after", "if mixup and CutMix are off", mixes),
        (is_threshold_idle, "loss.target_threshold", "except to undo label smoothing without mixing", mixes),
        (recipe.data.format == "synthetic", augments, "with synthetic images", "data.format"),
        (jitter and not any(dict(jitter).values()), "augment.color_jitter", "with all factors 0", ""),
    ):
        for key in keys.split() if has_no_effect else ():
            yield key, reason, related


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
        advice.append(f"set {in_words(recipe, sizes)}")
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
    if model.frozen and model.weights is None:
        message = "needs model.weights: without loaded weights the stages would stay random; write []"
        yield Problem("model.frozen", message, ("model.weights",))
    if model.in_channels != 3 and data.format != "synthetic":
        message = f"must be 3, since image files are read as RGB, found {model.in_channels}"
        yield Problem("model.in_channels", message, ("data.format",))
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != model.in_channels:
            message = f"needs one number per channel, {model.in_channels} (model.in_channels), found {len(values)}"
            yield Problem(f"data.{name}", message, ("model.in_channels",))


def _batch(recipe: Recipe) -> Iterator[Problem]:
    total, micro, repeats = recipe.batch.global_size, recipe.batch.micro_size, recipe.augment.repeats
    sizes = fitting_batch(recipe)
    # Without a fitting batch, no global size is even and a multiple of the repeats.
    advice = in_words(recipe, sizes) if sizes else "batch.micro_size=2 and a smaller augment.repeats"
    if total % micro:
        message = f"must be a multiple of batch.micro_size, {micro}, found {total}; write {advice}"
        yield Problem("batch.global_size", message, ("batch.micro_size",))
    if total % repeats:
        message = f"must divide batch.global_size, {total}, found {repeats}; write {advice}"
        yield Problem("augment.repeats", message, ("batch.global_size",))
    if micro == 1 and _is_mixed(recipe):
        key = "mix.mixup" if recipe.mix.mixup else "mix.cutmix"
        message = f"needs a second image, and batch.micro_size is 1; write {advice}, or {key}=0"
        yield Problem(key, message, ("batch.micro_size",))
    if micro == 1 and (alone := lone_stages(recipe)):
        size = smallest_image(recipe)
        yield Problem(
            "batch.micro_size",
            f"must be at least 2, found 1: {one_of(alone)} reduces one image of {size}x{size} pixels to one pixel, and "
            f"BatchNorm's variance needs more; write {advice}",
            ("data.progressive.min_size" if size < recipe.data.image_size else "data.image_size",),
        )


def _training(recipe: Recipe) -> Iterator[Problem]:
    optimizer, runtime = recipe.optimizer, recipe.runtime
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        yield Problem("optimizer.nesterov", "needs optimizer.momentum above 0; write false", ("optimizer.momentum",))
    if recipe.loss.class_weights == recipe.data.sampling == "balanced":
        message = "is balanced like data.sampling: rare classes would count twice; write null, or sample by shuffle"
        yield Problem("loss.class_weights", message, ("data.sampling",))
    if runtime.grad_checkpointing and runtime.compile is True:
        message = "is for models that are not compiled; write false, or set runtime.compile to false or auto"
        yield Problem("runtime.grad_checkpointing", message, ("runtime.compile",))
    if runtime.compress_gradients != "none" and runtime.precision == "fp64":
        message = "would round the gradients of fp64 to 8 bits; write none, or change runtime.precision"
        yield Problem("runtime.compress_gradients", message, ("runtime.precision",))
    if recipe.evaluation.weights == "ema" and recipe.ema is None:
        message = "is ema, but ema is null, so the run has no average; write auto or model, or give the ema section"
        yield Problem("evaluation.weights", message, ("ema",))
    if recipe.evaluation.recalibrate and recipe.early_stop:
        message = "needs a last validation that is known in advance, unlike with early_stop; write null for one"
        yield Problem("evaluation.recalibrate", message, ("early_stop",))
    every, keep_every = recipe.checkpoint.every, recipe.checkpoint.keep_every
    if keep_every and (keep_every.unit != every.unit or keep_every.count % every.count):
        message = f"must be a multiple of checkpoint.every, {every}, found {keep_every}: only saved ones can be kept"
        yield Problem("checkpoint.keep_every", message, ("checkpoint.every",))


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
    return 2 if _is_mixed(recipe) or lone_stages(recipe) else 1


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


def check_lengths(recipe: Recipe, steps_per_epoch: int) -> list[str]:
    """Compare all durations of a run. Return a notice for each setting that the run does not reach.

    Raises `RecipeError` with every disagreement between two durations.
    """
    if problems := list(_durations(recipe, steps_per_epoch)):
        where = f"(an epoch has {steps_per_epoch} steps)"
        raise RecipeError([f"{problem.key}: {problem.message} {where}" for problem in problems])
    return list(_unreached_settings(recipe, steps_per_epoch))


def _durations(recipe: Recipe, steps_per_epoch: int | None = None) -> Iterator[Problem]:
    """Yield every disagreement between two durations, neither of which is the length."""
    progressive = recipe.data.progressive or ProgressiveSection()
    early_stop, every = recipe.early_stop, recipe.evaluation.every
    start, end = progressive.start_ramp, progressive.end_ramp
    if end and _is_longer(start, end, steps_per_epoch):
        message = f"must not be after data.progressive.end_ramp, {end}, found {start}"
        yield Problem("data.progressive.start_ramp", message, ("data.progressive.end_ramp",))
    if early_stop and _is_longer(every, early_stop.patience, steps_per_epoch):
        message = f"must not be shorter than evaluation.every, {every}, found {early_stop.patience}"
        yield Problem("early_stop.patience", message, ("evaluation.every",))


def _unreached_settings(recipe: Recipe, steps_per_epoch: int) -> Iterator[str]:
    """Yield a notice for each setting that would take effect after the end of the run.

    `end_ramp` and `keep_every` still have an effect at the last step.
    """
    schedule, progressive, early_stop = recipe.schedule, recipe.data.progressive, recipe.early_stop
    every = schedule.every if schedule.name == "step" else None
    end_ramp = progressive and progressive.end_ramp
    settings = [
        ("mix.off_after", recipe.mix.off_after, "images are mixed to the end", False),
        ("model.frozen_until", recipe.model.frozen_until, "the stages of model.frozen do not train", False),
        ("schedule.every", every, "the learning rate never falls", False),
        ("schedule.warmup", schedule.warmup, "the learning rate rises to the end", False),
        ("data.progressive.end_ramp", end_ramp, "images do not grow to their full size", True),
        ("early_stop.patience", early_stop and early_stop.patience, "the run cannot end early", False),
        ("checkpoint.keep_every", recipe.checkpoint.keep_every, "the setting keeps no checkpoint", True),
    ]
    end = recipe.length.steps(steps_per_epoch)
    for key, value, effect, includes_end in settings:
        if value and value.count and value.steps(steps_per_epoch) >= end + includes_end:
            yield f"note: {key}, {value}, is not reached within length, {recipe.length}: {effect}"


def _is_longer(a: Duration, b: Duration, steps_per_epoch: int | None) -> bool:
    """Return whether `a` is longer. False for different units if the steps of an epoch are not known."""
    if steps_per_epoch is None:
        return a.unit == b.unit and a.count > b.count
    return a.steps(steps_per_epoch) > b.steps(steps_per_epoch)
