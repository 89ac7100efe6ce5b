"""BatchNorm running statistics over logical replicas.

Every micro-batch is a logical replica with its own batch statistics. In one optimizer step each replica starts from
the running statistics the step began with; the new ones are the mean over all replicas. The update of BatchNorm
(Ioffe and Szegedy 2015, alg. 2, as an exponential average) is linear in the batch statistics, so this equals one
update with the mean of the replicas' statistics, whichever rank held which replica.
"""

# The _foreach_ functions, one kernel for hundreds of small tensors, are what torch.optim itself is built on.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seresnext.distributed.world import World


class BatchNormStatistics:
    """The running statistics of all BatchNorm layers of a model during one optimizer step.

    Call `begin_step` before the step, `begin_micro_batch` before every forward, `end_step` after the last, and then
    `undo_if` if the step may turn out not to count. Layers in evaluation mode, those of frozen stages, keep theirs to
    the bit.
    """

    def __init__(self, model: nn.Module, accumulation: int) -> None:
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        self._running = [t for layer in layers for t in (layer.running_mean, layer.running_var) if t is not None]
        counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        self._remembered = [_Remembered(tensors) for tensors in (self._running, counts) if tensors]
        self._accumulation = accumulation if layers else 1
        self._is_first = True
        self._sum: list[Tensor] = []

    def begin_step(self) -> None:
        """Remember the statistics that every micro-batch of the step starts from."""
        self._is_first = True
        self._sum = []
        for group in self._remembered:
            group.remember()

    def begin_micro_batch(self) -> None:
        """Put back the step's old statistics, keeping what the previous micro-batch made of them."""
        if self._accumulation > 1 and not self._is_first:
            self._keep()
            for group in self._remembered:
                group.put_back()
        self._is_first = False

    @torch.no_grad()
    def end_step(self, world: World, report: Tensor) -> Tensor:
        """Average the statistics over all replicas, with one all-reduce for the world, and sum `report` on the way.

        `report` is a flat tensor of a few numbers that the caller wants summed over ranks; riding along saves a
        second collective per step. Returns the sum.
        """
        if self._accumulation > 1:
            self._keep()
            torch._foreach_div_(self._sum, self._accumulation)
            torch._foreach_copy_(self._running, self._sum)
        if world.size == 1:
            return report
        if not self._running:
            return world.sum_(report)
        flat = torch.cat([t.flatten() for t in self._running] + [report.to(self._running[0].dtype)])
        world.sum_(flat)
        *running, report = flat.split([t.numel() for t in self._running] + [report.numel()])
        means = [total.view_as(own) / world.size for total, own in zip(running, self._running, strict=True)]
        torch._foreach_copy_(self._running, means)
        return report

    @torch.no_grad()
    def undo_if(self, skip: Tensor) -> None:
        """Put the statistics back to what they were before the step where `skip`, a number on the device, is not 0.

        To the bit, and whatever came of them, NaN too. Waits for nothing.
        """
        for group in self._remembered:
            group.put_back_if(skip)

    def _keep(self) -> None:
        if self._sum:
            torch._foreach_add_(self._sum, self._running)
        else:
            self._sum = [t.clone() for t in self._running]


class _Remembered:
    """Tensors of one type and device with what they were: a copy in one piece, for few operations a step."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._old, self._flat_old = _in_one_piece(tensors)
        self._chosen, self._flat_chosen = _in_one_piece(tensors)

    def remember(self) -> None:
        torch._foreach_copy_(self._old, self._tensors)

    def put_back(self) -> None:
        torch._foreach_copy_(self._tensors, self._old)

    def put_back_if(self, condition: Tensor) -> None:
        """Put back where a number on the device is not 0; waits for nothing."""
        torch._foreach_copy_(self._chosen, self._tensors)
        torch.where(condition != 0, self._flat_old, self._flat_chosen, out=self._flat_chosen)
        torch._foreach_copy_(self._tensors, self._chosen)


def _in_one_piece(like: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Memory for tensors like some others, as such and as one flat tensor."""
    flat = torch.cat([t.flatten() for t in like])
    parts = flat.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)], flat
