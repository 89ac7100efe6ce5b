"""Durations compared with each other and with the length of the run.

Durations in epochs and in steps can be compared only when the steps of an epoch are known. The recipe is therefore
checked twice: when it is read, and by the run. A setting that would take effect after the end of the run is a notice
and not an error, so that `--set length=3st` turns any recipe into a short test.
"""

from __future__ import annotations

from collections.abc import Iterator

from seresnext.durations import Duration
from seresnext.errors import RecipeError
from seresnext.recipe.explain import Problem
from seresnext.recipe.schema import ProgressiveSection, Recipe


def check_lengths(recipe: Recipe, steps_per_epoch: int) -> list[str]:
    """Compare all durations of a run. Return a notice for each setting that the run does not reach.

    Raises `RecipeError` with every disagreement between two durations.
    """
    if problems := list(duration_problems(recipe, steps_per_epoch)):
        where = f"(an epoch has {steps_per_epoch} steps)"
        raise RecipeError([f"{problem.key}: {problem.message} {where}" for problem in problems])
    return list(_unreached_settings(recipe, steps_per_epoch))


def duration_problems(recipe: Recipe, steps_per_epoch: int | None = None) -> Iterator[Problem]:
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
