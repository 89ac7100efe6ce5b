"""Gradients averaged over ranks by DistributedDataParallel (DDP), while the backward pass still runs."""

import warnings

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

_BUCKET_MB = 25  # MiB of gradients that are sent together. Without a number torch would begin with a smaller bucket.


def wrap_ddp(model: nn.Module, compress: bool = False) -> DistributedDataParallel:
    """Return the model in DDP, which averages gradients over ranks and does nothing else.

    With `compress` gradients are sent and summed as bfloat16: half the traffic, and 8 bits of precision.
    BatchNormStatistics averages the buffers. DDP would broadcast the buffers of rank 0, and the statistics of the other
    ranks would be lost. Gradients are views of the buckets, so no gradient is copied.
    """
    with warnings.catch_warnings():
        # Older supported releases of torch lack the new name of `broadcast_buffers`, which is forward_sync_buffers.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        ddp = DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=_BUCKET_MB
        )
    if compress:
        ddp.register_comm_hook(None, bf16_compress_hook)
    return ddp
