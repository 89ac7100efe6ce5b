"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from seresnext.recipe.schema import Recipe
from seresnext.training.plan import Plan


@dataclass(frozen=True)
class Schedule:
    """A peak learning rate, a linear warm-up to it, and a shape that leads down from it. Lengths in optimizer steps."""

    shape: str
    peak: float
    total: int
    warmup: int = 0
    every: int = 1
    factor: float = 1.0
    final: float = 0.0

    def lr_at(self, step: int) -> float:
        """The learning rate that step number `step` (from 0) uses.

        Warm-up is linear and reaches the peak with its last step (Goyal et al. 2017, section 2.2).
        """
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return SHAPES[self.shape](self, step)


def _step(schedule: Schedule, step: int) -> float:
    """Multiplied by `factor` after each `every` steps, counted from the start of training (He et al. 2016)."""
    return schedule.peak * schedule.factor ** (step // schedule.every)


def _cosine(schedule: Schedule, step: int) -> float:
    """Half a cosine from the end of the warm-up to the end of training (Loshchilov and Hutter 2017, eq. 5)."""
    progress = (step - schedule.warmup) / max(1, schedule.total - schedule.warmup)
    return schedule.final + (schedule.peak - schedule.final) * (1 + math.cos(math.pi * progress)) / 2


def _linear(schedule: Schedule, step: int) -> float:
    """A straight line from the end of the warm-up to the end of training."""
    progress = (step - schedule.warmup) / max(1, schedule.total - schedule.warmup)
    return schedule.peak + (schedule.final - schedule.peak) * progress


SHAPES: dict[str, Callable[[Schedule, int], float]] = {"step": _step, "cosine": _cosine, "linear": _linear}


def build_schedule(recipe: Recipe, plan: Plan) -> Schedule:
    """The learning rate of a recipe as a function of the step."""
    section = recipe.schedule
    lengths = {"total": plan.total, "warmup": section.warmup.steps(plan.steps_per_epoch)}
    if section.name == "step":
        assert section.every is not None
        assert section.factor is not None
        falls = {"every": section.every.steps(plan.steps_per_epoch), "factor": section.factor}
        return Schedule("step", recipe.optimizer.lr, **lengths, **falls)
    return Schedule(section.name, recipe.optimizer.lr, **lengths, final=section.final_lr)
