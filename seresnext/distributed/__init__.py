"""The processes of a run: who they are, how they agree, and what they average: gradients, BatchNorm statistics."""

from seresnext.distributed.batchnorm import BatchNormStatistics
from seresnext.distributed.ddp import DDPOptions, wrap_ddp
from seresnext.distributed.devices import choose_device
from seresnext.distributed.launch import launcher, open_world
from seresnext.distributed.world import World

__all__ = [
    "BatchNormStatistics",
    "DDPOptions",
    "World",
    "choose_device",
    "launcher",
    "open_world",
    "wrap_ddp",
]
