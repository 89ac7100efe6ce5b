"""Gradients averaged over ranks by DistributedDataParallel (DDP), while the backward pass still runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from seresnext.recipe.schema import Recipe


@dataclass(frozen=True)
class DDPOptions:
    """Options of DDP: gradients are sent in buckets of `bucket_mb` MiB, each as soon as the bucket is full.

    With `compress` gradients are sent and summed as bfloat16: half the traffic, and 8 bits of precision.
    """

    bucket_mb: float = 25.0
    compress: bool = False


def build_ddp_options(recipe: Recipe) -> DDPOptions:
    """Return the DDP options of a recipe."""
    return DDPOptions(recipe.runtime.bucket_mb, recipe.runtime.compress_gradients == "bf16")


def wrap_ddp(model: nn.Module, options: DDPOptions) -> DistributedDataParallel:
    """Return the model in DDP, which averages gradients over ranks and does nothing else.

    BatchNormStatistics averages the buffers. DDP would broadcast the buffers of rank 0, and the statistics of the other
    ranks would be lost. Gradients are views of the buckets, so no gradient is copied.
    """
    with warnings.catch_warnings():
        # Older supported releases of torch lack the new name of `broadcast_buffers`, which is forward_sync_buffers.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        ddp = DistributedDataParallel(
            model,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=options.bucket_mb,  # pyright: ignore[reportArgumentType] (MiB times 2**20, then rounded)
        )
    if options.compress:
        ddp.register_comm_hook(None, bf16_compress_hook)
    return ddp
