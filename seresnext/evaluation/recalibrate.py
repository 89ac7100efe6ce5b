"""Recalibration of BatchNorm statistics for the final weights."""

# torch._foreach_ functions use one kernel for hundreds of small tensors. torch.optim is built on these functions.
# pyright: reportPrivateImportUsage=false
import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors as unflatten
from torch.nn.modules.batchnorm import _BatchNorm

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.distributed.batchnorm import flatten
from seresnext.runtime import Precision


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterator[DeviceBatch],
    *,
    world: World,
    precision: Precision,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Set the running statistics of BatchNorm to the means over all micro-batches of all ranks.

    Training updates running statistics while the weights change. Means over batches with the final weights are closer
    to the statistics of the whole training split (Wu and Johnson 2021, arXiv:2105.07576, section 3, "PreciseBN"). The
    result does not depend on the old statistics. All other layers compute as in evaluation, and frozen BatchNorm
    layers keep the old statistics. Every rank must have the same number of batches.

    Returns False, with the model unchanged, if any rank was asked to stop.
    """
    # A copy computes the statistics, so that a stop or an error leaves the model unchanged.
    measured = copy.deepcopy(model).train()
    layers = {
        name: layer for name, layer in measured.named_modules() if isinstance(layer, _BatchNorm) and layer.training
    }
    measured.eval()
    for layer in layers.values():
        layer.train()
        layer.momentum = 1.0  # The running statistics are then the statistics of the last batch.
    running = _running_statistics(layers.values())
    sums = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in running]
    count = 0
    for batch in batches:
        if world.any(stop_requested()):
            return False
        with precision.autocast(world.device):
            measured(batch.images)
        torch._foreach_add_(sums, [tensor.double() for tensor in running])
        count += 1
    means = world.sum_(flatten(sums)) / (count * world.size)
    own = _running_statistics(model.get_submodule(name) for name in layers)
    torch._foreach_copy_(own, unflatten(means, own))
    return True


def _running_statistics(layers: Iterable[nn.Module]) -> list[Tensor]:
    return [buffer for layer in layers for buffer in layer.buffers() if buffer.is_floating_point()]
