"""BatchNorm statistics measured afresh for weights that training is done with."""

# The _foreach_ functions, one kernel for hundreds of small tensors, are what torch.optim itself is built on.
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
    """Set the running statistics of BatchNorm to the means over all micro-batches of all ranks; every rank has as many.

    Running statistics follow weights that change; means over batches that see the same weights are nearer to what the
    whole training split gives (Wu and Johnson 2021, arXiv:2105.07576, section 3, "PreciseBN"). They do not depend on
    what the statistics were, and all else computes as in evaluation. Layers that do not train keep theirs. Returns
    False, and leaves everything as it was, when any rank was asked to stop.
    """
    was_training = model.training
    model.train()
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    running = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var) if tensor is not None]
    # Kept for the end too: momentum, and the number of batches that training saw.
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    counters = [layer.num_batches_tracked for layer in layers]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.train()
        layer.momentum = 1.0  # The statistics of a batch as they are.
    means: list[Tensor] | None = None
    try:
        means = _means(model, batches, running, world, precision, stop_requested)
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


def _means(
    model: nn.Module,
    batches: Iterator[DeviceBatch],
    running: list[Tensor],
    world: World,
    precision: Precision,
    stop_requested: Callable[[], bool],
) -> list[Tensor] | None:
    """Mean statistics over the batches of all ranks, in float64; None when any rank was asked to stop."""
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
