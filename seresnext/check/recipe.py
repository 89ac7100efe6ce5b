"""Rules for a recipe: values that papers or libraries report as harmful together. Each finding has the source.

The reader of recipes refuses values that cannot work. These rules are about values that work badly.
"""

import math
from collections.abc import Iterator

from torch import nn

from seresnext.check.findings import Finding, judge
from seresnext.recipe import Recipe, check_lengths
from seresnext.training.ema import Ema
from seresnext.training.plan import Plan
from seresnext.training.schedule import build_schedule

_RATE_FACTOR = 4.0  # times above or below the linear rule
_LARGE_BATCH, _LARGEST_BATCH = 2048, 8192
_LAST_RATE, _WARMUP = 0.05, 0.2  # shares of the peak and of the run
_FIRST_HALF = 0.1  # share of the average
_MICRO_SIZE = 16
_SHORT, _LONG = 30, 200  # epochs
_HE, _DECOUPLED = "He et al. 2016, arXiv:1512.03385", "Loshchilov and Hutter 2019, arXiv:1711.05101; arXiv:1812.01187"
_GOYAL, _DEIT = "Goyal et al. 2017, arXiv:1706.02677", "Touvron et al. 2021, arXiv:2012.12877, table 9"
_RADAM = "Liu et al. 2020, arXiv:1908.03265: the first steps of Adam vary too much"
_GROUP_NORM = "Wu and He 2018, arXiv:1803.08494, table 2: an error of 23.7 % at 16 images, 24.8 at 8, 27.3 at 4"
_STRIKES_BACK = "Wightman et al. 2021, arXiv:2110.00476, table 2: fewer techniques for 100 epochs than for 600"
_NVIDIA = "NVIDIA DeepLearningExamples, se-resnext101-32x4d: mixup for 250 epochs, none for 90"


def check_recipe(recipe: Recipe, plan: Plan) -> Iterator[Finding]:
    """Yield the finding of each rule that concerns the recipe. The first problem that holds gives the fix."""
    yield from _rates(recipe, plan)
    yield from _regularisation(recipe, plan)


def _judge(name: str, source: str, measured: str, *problems: tuple[bool, str]) -> Finding:
    return judge("recipe", name, measured, next((fix for holds, fix in problems if holds), ""), source=source)


def _rates(recipe: Recipe, plan: Plan) -> Iterator[Finding]:
    """Yield the findings about learning rate, batch, warm-up and schedule."""
    optimizer, batch, warmup = recipe.optimizer, recipe.batch.global_size, recipe.schedule.warmup
    is_adamw = optimizer.name == "adamw"
    # The steps of SGD are as long as rate / (1 - momentum).
    rule = 5e-4 / 512 * batch if is_adamw else 0.1 / 256 * batch * (1 - optimizer.momentum) / (1 - 0.9)
    times = optimizer.lr / rule
    is_low = times < 1 / _RATE_FACTOR and recipe.model.weights is None  # Fine-tuning has low rates on purpose.
    yield _judge(
        "learning rate",
        f"{_DEIT}: 0.0005 for 512 images" if is_adamw else f"{_GOYAL}, section 5.1: 0.1 for 256 images, momentum 0.9",
        f"{optimizer.name} at {optimizer.lr:g} for {batch:,} images, {times:.3g} times the linear rule",
        (times > _RATE_FACTOR or is_low, f"set optimizer.lr={rule:.2g}"),
    )
    yield _judge(
        "batch and warm-up",
        _RADAM if is_adamw else f"{_GOYAL}, section 2.2 and figure 1",
        f"{batch:,} images a step, warm-up {warmup}",
        (batch > _LARGEST_BATCH, f"set batch.global_size={_LARGEST_BATCH} or less: the error rises beyond"),
        (warmup.count == 0 and (is_adamw or batch >= _LARGE_BATCH), "set schedule.warmup=5ep"),
    )
    schedule = build_schedule(recipe, plan)
    last, share = schedule.lr_at(plan.total - 1) / schedule.peak, schedule.warmup / plan.total
    unreached = [note.removeprefix("note: ") for note in check_lengths(recipe, plan.steps_per_epoch)]
    is_high = last > max(_LAST_RATE, schedule.final / schedule.peak + 0.01)
    measured = f"{schedule.name}, {recipe.length} ({plan.total:,} steps), last rate {last:.2g} of the peak"
    yield _judge(
        "schedule",
        "Loshchilov and Hutter 2017, arXiv:1608.03983",
        "\n".join([measured, *unreached]),
        (is_high, f"set 'schedule={{name: cosine, warmup: {warmup}}}', or shorten schedule.every"),
        (bool(unreached), "shorten these settings, or raise length"),
        (share > _WARMUP, f"shorten schedule.warmup, which takes {share:.0%} of the run"),
    )


def _regularisation(recipe: Recipe, plan: Plan) -> Iterator[Finding]:
    """Yield the findings about weight decay, average, BatchNorm and augmentation."""
    optimizer, augment, ema, mix = recipe.optimizer, recipe.augment, recipe.ema, recipe.mix
    decay, is_adamw, micro = optimizer.weight_decay, optimizer.name == "adamw", recipe.batch.micro_size
    shrinks_norms = decay >= 1e-2 and optimizer.decay_norm_and_bias
    yield _judge(
        "weight decay",
        _DECOUPLED if is_adamw else f"{_HE}: 0.0001",
        f"{decay:g} with {optimizer.name}",
        (is_adamw and 0 < decay < 1e-3, "set optimizer.weight_decay=0.05: AdamW multiplies the decay by the rate"),
        (is_adamw and shrinks_norms, "set optimizer.decay_norm_and_bias=false"),
        (not is_adamw and decay > 1e-3, "set optimizer.weight_decay=1e-4: SGD adds the decay to the gradient"),
    )
    if ema:
        average = Ema(nn.Identity(), ema.decay, ema.warmup)
        share = math.prod(map(average.decay_at, range(plan.total // 2, plan.total)))
        yield _judge(
            "EMA",
            "Polyak and Juditsky 1992: the average is over the end of the run",
            f"decay {ema.decay:g}: {share:.1%} of the average is from the first half of {plan.total:,} steps",
            (share > _FIRST_HALF, f"set ema.decay={1 - 10 / max(plan.total, 20):.4g}"),
        )
    if len(recipe.model.never_trained) < 5:
        fix = f"set batch.micro_size={_MICRO_SIZE} or more; runtime.grad_checkpointing=true saves memory"
        yield _judge("BatchNorm", _GROUP_NORM, f"statistics over {micro} images", (micro < _MICRO_SIZE, fix))
    epochs = plan.total / plan.steps_per_epoch
    techniques = {"policy": augment.policy, "erasing": augment.erasing, "repeats": augment.repeats > 1}
    techniques |= {"mixup": mix.mixup, "cutmix": mix.cutmix, "drop_path_rate": recipe.model.drop_path_rate}
    used = [name for name, value in techniques.items() if value]
    is_long = not used and epochs >= _LONG and recipe.model.weights is None
    yield _judge(
        "augmentation",
        _NVIDIA if is_long else _STRIKES_BACK,
        f"{epochs:,.4g} epochs, {', '.join(used) or 'crops and flips only'}",
        (len(used) > 2 and epochs < _SHORT, f"use fewer, or set length={_SHORT}ep or more"),
        (is_long, "set mix.mixup=0.2 against overfitting"),
    )
