"""The model of a training step with its wrappers: DDP, compilation, BatchNorm statistics and the timer of the rank."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import nullcontext

from torch import nn

from seresnext.distributed import BatchNormStatistics, RankTimer, World, wrap_ddp
from seresnext.models import SENet
from seresnext.process.signals import block_stop_signals
from seresnext.runtime import compile_forward


class WrappedModel:
    """The wrappers of a model for the stages that train. `freeze` changes the stages and makes new wrappers.

    `forward` is the function to train. `ddp` and `timer` are None in a single process. `accumulation` is the number of
    micro-batches of a step on this rank. `compiling()` blocks stop signals in code that may start the compiler: the
    first pass, and a pass with a new image size.
    """

    def __init__(self, model: nn.Module, world: World, accumulation: int, compress: bool, compiled: bool) -> None:
        self._model, self._world, self._accumulation = model, world, accumulation
        self._compress, self._compiled = compress, compiled
        self.timer = RankTimer(model, world.device) if world.size > 1 else None
        self.compiling = block_stop_signals if compiled else nullcontext
        self._wrap()

    def _wrap(self) -> None:
        self.statistics = BatchNormStatistics(self._model, self._accumulation)
        self.ddp = wrap_ddp(self._model, self._compress) if self._world.size > 1 else None
        forward = self.ddp or self._model
        self.forward = compile_forward(forward) if self._compiled else forward

    def freeze(self, stages: Sequence[str]) -> None:
        """Freeze these stages of an SENet and train all others. DDP and the statistics know only stages that train."""
        assert isinstance(self._model, SENet)
        self._model.freeze(stages)
        del self.ddp, self.forward
        gc.collect()  # The old DDP removes its hooks before the new one adds hooks.
        self._wrap()
        if self.timer:
            self.timer.attach(self._model)
