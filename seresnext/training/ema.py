"""Exponential moving average of weights and BatchNorm statistics."""

# The function that torch.optim.SGD(fused=True) is built on has no public name.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A second model whose floating-point tensors follow the trained ones (Polyak and Juditsky 1992).

    The decay is a function of the number of completed optimizer steps, skipped ones too: there is no counter to save.
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
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Move towards the trained weights as they are after step number `step` (from 0).

        Where `skip`, a float32 number on the device, is 1, the average keeps every bit, without waiting for the number.
        Moving by 1 - decay is a step of SGD with that learning rate down the gradient `average - weights`, so torch's
        fused SGD does it, which can be told on the device not to: as weight decay of 1, less the weights.
        """
        mine, theirs = zip(*self._averaged, strict=True)
        torch._fused_sgd_(
            list(mine),
            list(theirs),
            [],
            weight_decay=1.0,
            momentum=0.0,
            lr=1 - self.decay_at(step),
            dampening=0.0,
            nesterov=False,
            maximize=True,  # The sign of `theirs`.
            is_first_step=False,
            found_inf=skip,
        )
        for counter, other in self._copied:  # Of BatchNorm, whose own are as they were before a step that is skipped.
            counter.copy_(other)
