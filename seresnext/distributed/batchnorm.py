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
        self._counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        self._accumulation = accumulation if layers else 1
        self._is_first = True
        self._old = [torch.empty_like(t) for t in self._running]
        self._old_counts = [torch.empty_like(t) for t in self._counts]
        self._sum: list[Tensor] = []

    def begin_step(self) -> None:
        """Remember the statistics that every micro-batch of the step starts from."""
        self._is_first = True
        self._sum = []
        if self._running:
            torch._foreach_copy_(self._old, self._running)
            torch._foreach_copy_(self._old_counts, self._counts)

    def begin_micro_batch(self) -> None:
        """Put back the step's old statistics, keeping what the previous micro-batch made of them."""
        if self._accumulation > 1 and not self._is_first:
            self._keep()
            torch._foreach_copy_(self._running, self._old)
            torch._foreach_copy_(self._counts, self._old_counts)
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
        for tensors, before in ((self._running, self._old), (self._counts, self._old_counts)):
            if tensors:
                chosen = torch.where(skip != 0, _flat(before), _flat(tensors))
                parts = chosen.split([t.numel() for t in tensors])
                torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def _keep(self) -> None:
        if self._sum:
            torch._foreach_add_(self._sum, self._running)
        else:
            self._sum = [t.clone() for t in self._running]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
