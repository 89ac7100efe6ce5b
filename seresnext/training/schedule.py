"""The learning rate as a function of the step. A schedule has no state, so a checkpoint does not hold one.

To add a schedule, write its function, enter the function in `SCHEDULES`, and add the name to the recipe's
`ScheduleSection`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from seresnext.recipe.schema import Recipe
from seresnext.training.plan import Plan


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up to a peak learning rate, then a decay. All lengths are in optimizer steps.

    `every` and `factor` belong to the decay `step`, `final` to `cosine` and `linear`.
    """

    name: str
    peak: float
    total: int
    warmup: int = 0
    every: int = 1
    factor: float = 1.0
    final: float = 0.0

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step number `step` (from 0).

        The last step of the warm-up has the peak (Goyal et al. 2017, section 2.2).
        """
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return SCHEDULES[self.name](self, step)


def _step(schedule: Schedule, step: int) -> float:
    """Multiply by `factor` after each `every` steps, counted from the start of training (He et al. 2016)."""
    return schedule.peak * schedule.factor ** (step // schedule.every)


def _cosine(schedule: Schedule, step: int) -> float:
    """Follow half a cosine from the end of the warm-up to the end of training (Loshchilov and Hutter 2017, eq. 5)."""
    return schedule.final + (schedule.peak - schedule.final) * (1 + math.cos(math.pi * _progress(schedule, step))) / 2


def _linear(schedule: Schedule, step: int) -> float:
    """Follow a straight line from the end of the warm-up to the end of training."""
    return schedule.peak + (schedule.final - schedule.peak) * _progress(schedule, step)


def _progress(schedule: Schedule, step: int) -> float:
    return (step - schedule.warmup) / max(1, schedule.total - schedule.warmup)


SCHEDULES: dict[str, Callable[[Schedule, int], float]] = {"step": _step, "cosine": _cosine, "linear": _linear}
"""The decays after the warm-up, by the recipe's `schedule.name`."""


def build_schedule(recipe: Recipe, plan: Plan) -> Schedule:
    """Build the schedule of a recipe."""
    section = recipe.schedule
    return Schedule(
        section.name,
        peak=recipe.optimizer.lr,
        total=plan.total,
        warmup=section.warmup.steps(plan.steps_per_epoch),
        every=section.every.steps(plan.steps_per_epoch) if section.every else 1,
        factor=section.factor or 1.0,
        final=section.final_lr,
    )
