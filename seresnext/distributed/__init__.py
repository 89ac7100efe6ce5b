"""The processes of a run: who they are, how they agree, and BatchNorm statistics over them."""

from seresnext.distributed.batchnorm import BatchNormStatistics
from seresnext.distributed.launch import open_world
from seresnext.distributed.world import World

__all__ = ["BatchNormStatistics", "World", "open_world"]
