"""Gradients averaged over ranks while the backward pass still runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from seresnext.recipe.schema import Recipe


@dataclass(frozen=True)
class DDPOptions:
    """How gradients travel: in buckets of `bucket_mb` MiB, each sent as soon as it is full.

    With `compress` they travel as bfloat16 and are summed as such, which halves the traffic and rounds them to 8 bits.
    With `static_graph` DDP relies on it that every step uses the same parameters in the same order.
    """

    bucket_mb: float = 25.0
    compress: bool = False
    static_graph: bool = False

    @property
    def passes_to_settle(self) -> int:
        """Backward passes until the buckets are those of all later steps.

        DDP fills them anew, in the order in which gradients come, after the first pass that sends each bucket when it
        is full. With a static graph that is the second: the first only counts how often a parameter is used, and sends
        everything at its end (torch/csrc/distributed/c10d/reducer.cpp, `autograd_hook` and `delay_all_reduce`).
        """
        return 2 if self.static_graph else 1


def wrap_ddp(model: nn.Module, exchange: DDPOptions) -> DistributedDataParallel:
    """The model with its gradients averaged over ranks, and nothing else done to it.

    Buffers are averaged by BatchNormStatistics; broadcasting rank 0's would drop what the other ranks saw. Gradients
    are views of the buckets, so nothing is copied.
    """
    with warnings.catch_warnings():
        # The new name, forward_sync_buffers, is not known to the older releases of torch that are supported.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        ddp = DistributedDataParallel(
            model,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=exchange.bucket_mb,  # pyright: ignore[reportArgumentType] (MiB times 2**20, then rounded)
            static_graph=exchange.static_graph,
        )
    if exchange.compress:
        ddp.register_comm_hook(None, bf16_compress_hook)
    return ddp


def build_ddp_options(recipe: Recipe) -> DDPOptions:
    """How the gradients of a recipe travel between ranks."""
    runtime = recipe.runtime
    return DDPOptions(runtime.bucket_mb, runtime.compress_gradients == "bf16")
