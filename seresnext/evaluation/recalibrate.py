"""Recalibration of BatchNorm statistics for the final weights."""

# torch._foreach_ functions use one kernel for hundreds of small tensors. torch.optim is built on these functions.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
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
    was_training = model.training
    model.train()
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    running = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var) if tensor is not None]
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    counters = [layer.num_batches_tracked for layer in layers]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.train()
        layer.momentum = 1.0  # The running statistics are then the statistics of the last batch.
    means: list[Tensor] | None = None
    try:
        means = _mean_statistics(model, batches, running, world, precision, stop_requested)
    finally:
        for buffer, value in before:
            if means is None or any(buffer is counter for counter in counters):
                buffer.copy_(value)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(was_training)
    if means is None:
        return False
    for tensor, mean in zip(running, means, strict=True):
        tensor.copy_(mean)
    return True


def _mean_statistics(
    model: nn.Module,
    batches: Iterator[DeviceBatch],
    running: list[Tensor],
    world: World,
    precision: Precision,
    stop_requested: Callable[[], bool],
) -> list[Tensor] | None:
    """Return the mean statistics over the batches of all ranks (float64); None if any rank was asked to stop."""
    sums = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in running]
    count = 0
    for batch in batches:
        if world.any(stop_requested()):
            return None
        with precision.autocast(world.device):
            model(batch.images)
        torch._foreach_add_(sums, [tensor.double() for tensor in running])
        count += 1
    flat = world.sum_(torch.cat([total.flatten() for total in sums])) / (count * world.size)
    return [part.view_as(total) for part, total in zip(flat.split([t.numel() for t in sums]), sums, strict=True)]
