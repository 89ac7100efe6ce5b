"""The processes of a run: ranks and devices, agreement, heartbeats, and averages of gradients and BatchNorm."""

from seresnext.distributed.batchnorm import BatchNormStatistics
from seresnext.distributed.ddp import RankTimer, RankTimes, wrap_ddp
from seresnext.distributed.launch import choose_device, launcher_id, open_world
from seresnext.distributed.world import World

__all__ = [
    "BatchNormStatistics", "RankTimer", "RankTimes", "World", "choose_device", "launcher_id", "open_world", "wrap_ddp",
]  # fmt: skip
