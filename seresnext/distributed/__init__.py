"""The processes of a run: who they are, how they agree, and what they average: gradients, BatchNorm statistics."""

from seresnext.distributed.batchnorm import BatchNormStatistics
from seresnext.distributed.devices import choose_device
from seresnext.distributed.gradients import Exchange, distribute
from seresnext.distributed.launch import launcher, open_world
from seresnext.distributed.world import World

__all__ = [
    "BatchNormStatistics",
    "Exchange",
    "World",
    "choose_device",
    "distribute",
    "launcher",
    "open_world",
]
