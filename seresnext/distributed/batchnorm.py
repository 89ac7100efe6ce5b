"""BatchNorm running statistics over logical replicas.

Every micro-batch is a logical replica with its own batch statistics. In one optimizer step each replica starts from
the running statistics of the step's beginning. The new running statistics are the mean over all replicas. The update of
BatchNorm (Ioffe and Szegedy 2015, alg. 2, as an exponential average) is linear in the batch statistics, so the mean
equals one update with the mean batch statistics, for any distribution of replicas over ranks.
"""

# torch.optim uses the same _foreach_ functions: one kernel for hundreds of small tensors.
# pyright: reportPrivateImportUsage=false
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors as unflatten
from torch.nn.modules.batchnorm import _BatchNorm

from seresnext.distributed.world import World


class BatchNormStatistics:
    """The running statistics of all BatchNorm layers of a model during one optimizer step.

    Call `begin_step` before the step, `begin_micro_batch` before every forward pass, `end_step` after the last forward
    pass, and then `undo_if` if the step may be skipped. The statistics of layers in evaluation mode (frozen stages) do
    not change.
    """

    def __init__(self, model: nn.Module, accumulation: int) -> None:
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        self._running = [t for layer in layers for t in (layer.running_mean, layer.running_var) if t is not None]
        counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        self._backups = [_Backup(tensors) for tensors in (self._running, counts) if tensors]
        self._accumulation = accumulation if layers else 1
        self._is_first = True
        self._sum: list[Tensor] = []

    def begin_step(self) -> None:
        """Back up the statistics that every micro-batch of the step starts from."""
        self._is_first = True
        self._sum = []
        for backup in self._backups:
            backup.save()

    def begin_micro_batch(self) -> None:
        """Add the statistics of the previous micro-batch to the sum, and restore the backup."""
        if self._accumulation > 1 and not self._is_first:
            self._add_to_sum()
            for backup in self._backups:
                backup.restore()
        self._is_first = False

    @torch.no_grad()
    def end_step(self, world: World, report: Tensor) -> Tensor:
        """Average the statistics over all replicas and ranks. Return the sum of `report` over all ranks.

        `report` is a flat tensor of a few numbers. One all-reduce for both saves a second collective per step.
        """
        if self._accumulation > 1:
            self._add_to_sum()
            torch._foreach_div_(self._sum, self._accumulation)
            torch._foreach_copy_(self._running, self._sum)
        if world.size == 1:
            return report
        if not self._running:
            return world.sum_(report)
        flat = world.sum_(flatten([*self._running, report.to(self._running[0].dtype)]))
        *sums, report = unflatten(flat, [*self._running, report])
        torch._foreach_copy_(self._running, torch._foreach_div(sums, world.size))
        return report

    @torch.no_grad()
    def undo_if(self, skip: Tensor) -> None:
        """Restore the backup bit for bit if `skip`, a number on the device, is not 0. Do not wait for the device."""
        for backup in self._backups:
            backup.restore_if(skip)

    def _add_to_sum(self) -> None:
        if self._sum:
            torch._foreach_add_(self._sum, self._running)
        else:
            self._sum = [t.clone() for t in self._running]


class _Backup:
    """A backup of tensors of one type and device, in one flat tensor, so that a step needs few operations."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self.save()

    def save(self) -> None:
        self._flat = flatten(self._tensors)

    def restore(self) -> None:
        torch._foreach_copy_(self._tensors, unflatten(self._flat, self._tensors))

    def restore_if(self, condition: Tensor) -> None:
        """Restore if a number on the device is not 0. Do not wait for the device."""
        flat = torch.where(condition != 0, self._flat, flatten(self._tensors))
        torch._foreach_copy_(self._tensors, unflatten(flat, self._tensors))


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return a copy of tensors as one flat tensor."""
    return torch.cat([tensor.flatten() for tensor in tensors])
