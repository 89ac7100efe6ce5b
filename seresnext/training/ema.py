"""Exponential moving average of weights and BatchNorm statistics."""

# The _foreach_ functions, one kernel for hundreds of small tensors, are what torch.optim itself is built on.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A second model whose floating-point tensors follow the trained ones (Polyak and Juditsky 1992).

    The number of updates is the number of completed optimizer steps, so there is no counter to save.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._warmup = warmup
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        self._copied = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]

    def decay_at(self, step: int) -> float:
        """The decay for the update after step number `step` (from 0).

        Warm-up is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage, so that the first
        random weights are forgotten.
        """
        return min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the trained weights as they are after step number `step` (from 0)."""
        mine, theirs = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(list(mine), list(theirs), 1 - self.decay_at(step))
        for counter, other in self._copied:
            counter.copy_(other)
