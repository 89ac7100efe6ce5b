"""The processes that train together. One process is a world of one, in which every operation returns its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seresnext.distributed.heartbeat import Heartbeat
from seresnext.errors import Failure, out_of_memory

_CPU = torch.device("cpu")
_AFTER_HEARTBEAT = 10.0  # Seconds; collectives time out after the heartbeat, because the heartbeat names the lost rank.
_DOWNLOAD_SECONDS = 3600.0


@dataclass(frozen=True)
class World:
    """This process among the other processes: rank, number of ranks, device, and the heartbeat of this rank."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    heartbeat: Heartbeat = field(default_factory=Heartbeat, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files and prints."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place. Sums of integers are exact."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. Wait for the device."""
        if self.size == 1:
            return flag
        return bool(self.sum_(torch.tensor(int(flag), device=self.device)).item())

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0 on every rank. The value is plain data; torch sends it as a pickle."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on every rank. The values are plain data."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Run a block on every rank, and continue only if the block succeeds on all ranks.

        A Failure on any rank becomes a Failure of the same class and message on every rank, with `is_shared` set. The
        message comes from the lowest rank that failed. The block must contain no collective after a statement that
        can fail on some ranks only: the other ranks would wait in the collective.
        """
        failure: Failure | None = None
        try:
            yield
        except Failure as caught:
            failure = caught
        failures = self.gather(failure and (type(failure), str(failure)))
        first = next(filter(None, failures), None)
        if first:
            kind, message = first
            shared: Failure = kind.__new__(kind)  # `RecipeError.__init__` takes other arguments.
            shared.args = (message,)
            shared.is_shared = True
            raise shared from failure

    def set_timeout(self, seconds: float) -> None:
        """Set the time after which a rank that does not answer is lost."""
        self.heartbeat.timeout = seconds
        self._limit_collectives(seconds + _AFTER_HEARTBEAT)

    @contextmanager
    def downloading(self) -> Iterator[None]:
        """Let ranks wait for an hour in the collectives of a block, because other ranks may download a file.

        A rank that is lost meanwhile is found as soon as elsewhere.
        """
        self._limit_collectives(_DOWNLOAD_SECONDS)
        try:
            yield
        finally:
            self._limit_collectives(self.heartbeat.timeout + _AFTER_HEARTBEAT)

    def _limit_collectives(self, seconds: float) -> None:
        if self.size > 1 and dist.is_initialized():
            set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # Before 2.14.
            set_timeout(timedelta(seconds=seconds))

    @contextmanager
    def translate_errors(self) -> Iterator[World]:
        """Run a block. An error of torch about a lost rank or missing memory becomes a Failure with advice."""
        try:
            yield self
        except BaseException as error:
            if explained := out_of_memory(error) or self.heartbeat.explain(error):
                raise explained from None
            raise
