"""Rules for a recipe: values that papers or libraries report as harmful together. Each finding has the source.

The reader of recipes refuses values that cannot work. These rules are about values that work badly.
"""

from __future__ import annotations

from collections.abc import Iterator

from seresnext.check.findings import Finding, judge
from seresnext.recipe.check_lengths import check_lengths
from seresnext.recipe.schema import Recipe
from seresnext.training.plan import Plan
from seresnext.training.schedule import build_schedule

_RATE_FACTOR = 4.0  # A rate so many times above or below the reference gets a warning.
_WARMED_BATCH, _LARGEST_BATCH, _SMALL_MICRO_BATCH = 2048, 8192, 16
_LAST_RATE, _WARMUP_SHARE, _OLD_SHARE = 0.05, 0.2, 0.1
_FEW_EPOCHS, _MANY_EPOCHS, _MANY_TECHNIQUES = 30, 200, 3


def check_recipe(recipe: Recipe, plan: Plan) -> Iterator[Finding]:
    """Yield the finding of each rule that concerns the recipe."""
    yield _learning_rate(recipe)
    yield _large_batch(recipe, plan)
    yield _schedule(recipe, plan)
    yield _weight_decay(recipe)
    if recipe.ema:
        yield _ema(recipe.ema.decay, recipe.ema.warmup, plan.total)
    if len(recipe.model.frozen) < 5:
        yield _batch_norm(recipe.batch.micro_size)
    yield _augmentation(recipe, plan.total / plan.steps_per_epoch)


def _judge(name: str, measured: str, source: str, *problems: tuple[bool, str]) -> Finding:
    """Return a warning with the fix of the first problem that holds, or ok."""
    return judge("recipe", name, measured, next((fix for holds, fix in problems if holds), ""), source=source)


def _learning_rate(recipe: Recipe) -> Finding:
    """Compare the peak rate with a rule. The steps of SGD are as long as rate / (1 - momentum)."""
    optimizer, batch = recipe.optimizer, recipe.batch.global_size
    rule, source = 5e-4 / 512 * batch, "Touvron et al. 2021, arXiv:2012.12877, table 9: 0.0005 for 512 images"
    if optimizer.name == "sgd":
        rule = 0.1 / 256 * batch * (1 - optimizer.momentum) / (1 - 0.9)
        source = "Goyal et al. 2017, arXiv:1706.02677, section 5.1: 0.1 for 256 images, momentum 0.9"
    times = optimizer.lr / rule
    is_low = times < 1 / _RATE_FACTOR and recipe.model.weights is None  # Fine-tuning has low rates on purpose.
    measured = f"{optimizer.name} at {optimizer.lr:g} for {batch:,} images, {times:.3g} times the linear rule"
    return _judge("learning rate", measured, source, (times > _RATE_FACTOR or is_low, f"set optimizer.lr={rule:.2g}"))


def _large_batch(recipe: Recipe, plan: Plan) -> Finding:
    batch, warmup, is_adamw = recipe.batch.global_size, recipe.schedule.warmup, recipe.optimizer.name == "adamw"
    source = "Goyal et al. 2017, arXiv:1706.02677, section 2.2 and figure 1"
    if is_adamw:
        source = "Liu et al. 2020, arXiv:1908.03265: Adam's first steps vary too much without a warm-up"
    return _judge(
        "batch and warm-up",
        f"{batch:,} images a step, warm-up {warmup}",
        source,
        (batch > _LARGEST_BATCH, f"set batch.global_size={_LARGEST_BATCH} or less: the error rises beyond"),
        (warmup.count == 0 and (is_adamw or batch >= _WARMED_BATCH), "set schedule.warmup=5ep"),
    )


def _schedule(recipe: Recipe, plan: Plan) -> Finding:
    """Check that the rate falls by the end, that the warm-up is short, and that the run reaches all settings."""
    schedule = build_schedule(recipe, plan)
    last, warmup = schedule.lr_at(plan.total - 1) / schedule.peak, schedule.warmup / plan.total
    notes = [note.removeprefix("note: ") for note in check_lengths(recipe, plan.steps_per_epoch)]
    measured = f"{recipe.schedule.name}, {recipe.length} ({plan.total:,} steps), last rate {last:.2g} of the peak"
    is_high = last > max(_LAST_RATE, schedule.final / schedule.peak + 0.01)
    return _judge(
        "schedule",
        "\n".join([measured, *notes]),
        "Loshchilov and Hutter 2017, arXiv:1608.03983",
        (is_high or bool(notes), "set schedule.name=cosine, or shorten schedule.every and the settings above"),
        (warmup > _WARMUP_SHARE, f"shorten schedule.warmup, which takes {warmup:.0%} of the run"),
    )


def _weight_decay(recipe: Recipe) -> Finding:
    decay, is_adamw = recipe.optimizer.weight_decay, recipe.optimizer.name == "adamw"
    source = "He et al. 2016, arXiv:1512.03385: 0.0001 for SGD"
    if is_adamw:
        source = (
            "Loshchilov and Hutter 2019, arXiv:1711.05101; 0.05 in arXiv:2012.12877; not on norms: arXiv:1812.01187"
        )
    return _judge(
        "weight decay",
        f"{decay:g} with {recipe.optimizer.name}",
        source,
        (is_adamw and 0 < decay < 1e-3, "set optimizer.weight_decay=0.05: AdamW multiplies the decay by the rate"),
        (
            is_adamw and decay >= 1e-2 and recipe.optimizer.decay_norm_and_bias,
            "set optimizer.decay_norm_and_bias=false",
        ),
        (not is_adamw and decay > 1e-3, "set optimizer.weight_decay=1e-4: SGD adds the decay to the gradient"),
    )


def _ema(decay: float, warmup: bool, total: int) -> Finding:
    """Check that the average at the end holds few weights of the first half of the run."""
    share = 1.0
    for step in range(total // 2, total):
        share *= min(decay, (1 + step) / (10 + step)) if warmup else decay  # training/ema.py
    return _judge(
        "EMA",
        f"decay {decay:g}, about {1 / (1 - decay):,.0f} of {total:,} steps: {share:.1%} of it is from the first half",
        "Polyak and Juditsky 1992: the average is over the end of the run",
        (share > _OLD_SHARE, f"set ema.decay={1 - 10 / max(total, 20):.4g}"),
    )


def _batch_norm(micro: int) -> Finding:
    fix = f"set batch.micro_size={_SMALL_MICRO_BATCH} or more; runtime.grad_checkpointing=true saves memory"
    source = "Wu and He 2018, arXiv:1803.08494, table 2: an error of 23.7 % at 16 images, 24.8 at 8, 27.3 at 4"
    return _judge("BatchNorm", f"statistics over {micro} images", source, (micro < _SMALL_MICRO_BATCH, fix))


def _augmentation(recipe: Recipe, epochs: float) -> Finding:
    augment, mix = recipe.augment, recipe.mix
    techniques = {
        "augment.policy": augment.policy,
        "augment.erasing": augment.erasing,
        "augment.repeats": augment.repeats > 1,
        "mix.mixup": mix.mixup,
        "mix.cutmix": mix.cutmix,
        "model.drop_path_rate": recipe.model.drop_path_rate,
    }
    used = [name for name, value in techniques.items() if value]
    is_long = not used and epochs >= _MANY_EPOCHS and recipe.model.weights is None
    source = "Wightman et al. 2021, arXiv:2110.00476, table 2: fewer techniques for 100 epochs than for 600"
    if is_long:
        source = "NVIDIA DeepLearningExamples, se-resnext101-32x4d: mixup for 250 epochs, none for 90"
    return _judge(
        "augmentation",
        f"{epochs:,.4g} epochs, {', '.join(used) or 'crops and flips only'}",
        source,
        (len(used) >= _MANY_TECHNIQUES and epochs < _FEW_EPOCHS, f"use fewer, or set length={_FEW_EPOCHS}ep or more"),
        (is_long, "set mix.mixup=0.2 against overfitting"),
    )
