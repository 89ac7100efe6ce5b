"""Durations beside each other: what is to happen within a run has to come before its end.

Durations of different units can be compared only once the run knows its steps per epoch, so this is asked twice: when
a recipe is read, and by the run. What does not come before the end is refused where somebody wrote it for a run of this
length, and else only said, so that `--set length=3st` tries any recipe out (`meant_keys` in check_written.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from seresnext.durations import Duration
from seresnext.errors import RecipeError
from seresnext.recipe.problem import Problem
from seresnext.recipe.schema import Recipe


@dataclass(frozen=True)
class UnreachedSetting:
    """A key whose time does not come before the end of the run, what that makes of it, and how to mean that."""

    key: str
    value: Duration
    length: Duration
    effect: str
    cure: str

    @property
    def problem(self) -> Problem:
        """For whoever wrote it."""
        return Problem(
            self.key,
            f"is not reached within length, {self.length}, found {self.value}: {self.effect}; {self.cure}, or, only to "
            "try the recipe out, shorten it with --set length=...",
            ("length",),
        )

    @property
    def notice(self) -> str:
        """For whoever shortened the run."""
        return f"note: {self.key}, {self.value}, is not reached within length, {self.length}: {self.effect}"


def late_keys(recipe: Recipe, steps_per_epoch: int | None = None) -> Iterator[UnreachedSetting]:
    """Every key whose time surely does not come before the end of the run."""
    length, schedule, progressive = recipe.length, recipe.schedule, recipe.data.progressive
    early_stop, keep_every = recipe.early_stop, recipe.checkpoint.keep_every

    def late(
        key: str, value: Duration | None, effect: str, cure: str, with_the_end: bool = False
    ) -> Iterator[UnreachedSetting]:
        """`with_the_end`: there is something left of it where it comes together with the end."""
        if value is None or value.count == 0:
            return
        if _longer(value, length, steps_per_epoch) or (not with_the_end and _equal(value, length, steps_per_epoch)):
            yield UnreachedSetting(key, value, length, effect, cure)

    yield from late("mix.off_after", recipe.mix.off_after, "images are mixed to the end", "lower it, or set it to null")
    if schedule.name == "step":
        yield from late("schedule.every", schedule.every, "the learning rate never falls", "lower it")
    yield from late("schedule.warmup", schedule.warmup, "the learning rate rises to the end", "lower it")
    if progressive:
        yield from late(
            "data.progressive.end_ramp",
            progressive.end_ramp,
            "images do not grow to their full size",
            "lower it",
            with_the_end=True,
        )
    if early_stop:
        yield from late(
            "early_stop.patience", early_stop.patience, "it cannot end early", "lower it, or set early_stop to null"
        )
    yield from late(
        "checkpoint.keep_every",
        keep_every,
        "no checkpoint stays because of it",
        "lower it, or set it to null",
        with_the_end=True,
    )


def duration_problems(recipe: Recipe, steps_per_epoch: int | None = None) -> Iterator[Problem]:
    """Every disagreement between two durations, neither of which is the length."""
    progressive, early_stop, every = recipe.data.progressive, recipe.early_stop, recipe.evaluation.every
    if progressive and progressive.end_ramp and _longer(progressive.start_ramp, progressive.end_ramp, steps_per_epoch):
        yield Problem(
            "data.progressive.start_ramp",
            f"must not be after data.progressive.end_ramp, {progressive.end_ramp}, found {progressive.start_ramp}",
            ("data.progressive.end_ramp",),
        )
    if early_stop and _longer(every, early_stop.patience, steps_per_epoch):
        yield Problem(
            "early_stop.patience",
            f"must not be shorter than evaluation.every, {every}, found {early_stop.patience}",
            ("evaluation.every",),
        )


def check_lengths(recipe: Recipe, steps_per_epoch: int) -> list[str]:
    """Compare all durations of a run, of any units. Return a note for each setting that the run does not reach.

    Raises RecipeError with every pair of durations that contradict each other.
    """
    problems = list(duration_problems(recipe, steps_per_epoch))
    if problems:
        where = f"(an epoch has {steps_per_epoch} steps)"
        raise RecipeError([f"{problem.key}: {problem.message} {where}" for problem in problems])
    return [late.notice for late in late_keys(recipe, steps_per_epoch)]


def _longer(a: Duration, b: Duration, steps_per_epoch: int | None) -> bool:
    """Surely longer: of different units nothing is sure while the steps of an epoch are not known."""
    if steps_per_epoch is None:
        return a.unit == b.unit and a.count > b.count
    return a.steps(steps_per_epoch) > b.steps(steps_per_epoch)


def _equal(a: Duration, b: Duration, steps_per_epoch: int | None) -> bool:
    """Surely as long."""
    return a == b if steps_per_epoch is None else a.steps(steps_per_epoch) == b.steps(steps_per_epoch)
