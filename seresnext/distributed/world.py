"""The processes that train together. One process is a world of one, and every operation here is then a no-op."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from seresnext.distributed.heartbeat import Heartbeat
from seresnext.errors import Failure, out_of_memory

Result = TypeVar("Result")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among the others: its rank of `size`, its rank on this machine, and the device it computes on."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = _CPU
    heartbeat: Heartbeat | None = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files and speaks to the person."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place. Integers are summed exactly."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Waits for the device."""
        if self.size == 1:
            return flag
        return bool(self.sum_(torch.tensor(int(flag), device=self.device)).item())

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank. Plain data only; it travels as a pickle between processes of one run."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank. Plain data only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def note(self, doing: str) -> None:
        """Say what this rank is doing, for the message should it be lost."""
        if self.heartbeat:
            self.heartbeat.doing = doing

    def set_timeout(self, seconds: float) -> None:
        """Let no rank wait longer than this for another that does not answer."""
        if self.heartbeat:
            self.heartbeat.timeout = seconds
            # The heartbeat is to come first, since it knows whom it waits for.
            set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # Before 2.14.
            set_timeout(timedelta(seconds=seconds + 10))

    def on_peer_lost(self, tell: Callable[[str], None], advice: Callable[[], str] | None = None) -> None:
        """Call `tell` with a message, from another thread, before this process ends because of a lost rank.

        `advice` returns the last sentence of the message: how to resume the run.
        """
        if self.heartbeat:
            self.heartbeat.on_peer_lost = tell
            self.heartbeat.advice = advice or self.heartbeat.advice

    def set_stop_check(self, is_stopping: Callable[[], bool]) -> None:
        """Wait less long for ranks that are silent once `is_stopping()`, asked from another thread, says so."""
        if self.heartbeat:
            self.heartbeat.is_stopping = is_stopping

    @contextmanager
    def translate_errors(self) -> Iterator[World]:
        """Run a block; a bare error of torch's for a lost rank or want of memory becomes the Failure that says so."""
        try:
            yield self
        except BaseException as error:
            explained = out_of_memory(error) or (self.heartbeat and self.heartbeat.loss(error))
            if explained:
                raise explained from None
            raise

    def together(self, action: Callable[[], Result]) -> Result:
        """Run an action on every rank and go on only if it succeeded on all of them.

        A failure of one rank becomes the same failure on every rank, so that none waits for a rank that gave up. The
        lowest failing rank's message is the one that counts.
        """
        result: Result | None = None
        failure: Failure | None = None
        try:
            result = action()
        except Failure as caught:
            failure = caught
        verdicts = self.gather(failure and (type(failure), str(failure)))
        first = next(filter(None, verdicts), None)
        if first:
            kind, message = first
            shared: Failure = kind.__new__(kind)
            shared.args = (message,)
            shared.is_shared = True
            raise shared from failure
        return result  # pyright: ignore[reportReturnType]
