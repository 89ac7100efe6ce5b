"""Signs of life between the ranks of a run: a message can then name the rank that was killed, froze or failed.

A collective that fails or never returns tells little: gloo names an address, NCCL a timeout. So every rank tells the
store through which the ranks found each other, each second, that it lives and what it is doing.
"""

# The stores are public, but not listed as such.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch.distributed as dist

from seresnext.errors import RankLost
from seresnext.process.exit import write_error_file
from seresnext.process.signals import in_critical_section

_INTERVAL = 1.0  # seconds between two signs of life
# Seconds of silence after which a rank is lost when this one was told to stop: torchrun does that when a rank died, and
# ends by force, 30 s later, whoever still waits for it, and then nobody tells why.
_STOPPING = 5.0
# Seconds that a rank has to come to its own end after another one failed, which is longer where both met the same.
_FAILING = 10.0
# How many intervals a rank may be late when it is asked after: a busy machine, and one that is just leaving.
_LATE = 3
_DEADLOCK = "deadlock"  # How a rank ended that waited for others that live.


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life: it counts up. `end` is None while the rank runs, and then how it ended ("": well)."""

    count: int
    doing: str
    end: str | None = None


class Heartbeat:
    """The signs of life of this rank, and what those of the others say.

    A thread of its own gives and reads them. When a rank has been silent for `timeout` seconds, which only a frozen or
    lost one is, this process ends: its main thread waits in a collective that nothing else can end. It does so sooner
    when it was told to stop, as `is_stopping` says, or when another rank failed, but not while it writes a checkpoint.
    The other ranks read `doing`. Before this process ends, `on_peer_lost` is called with the message. `advice` returns
    the last sentence of the message.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float) -> None:
        self.timeout = timeout
        self.doing = "the start"
        self.on_peer_lost: Callable[[str], None] = lambda message: None
        self.advice: Callable[[], str] = lambda: "Run the same command again"
        self.is_stopping: Callable[[], bool] = lambda: False
        self._store = store
        self._rank = rank
        self._size = size
        self._count = 0
        self._silent = [0.0] * size
        self._failed = 0.0
        self._is_leaving = False
        self._known: list[Beat] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, end: str) -> None:
        """Tell the others how this rank ends: an error in words, or nothing."""
        self._ended.set()
        self._thread.join(_INTERVAL)  # It may wait for a rank that never began.
        try:
            self._give(end)
        except RuntimeError:  # The store went with the process that held it, and nobody can be told.
            return

    def loss(self, error: BaseException) -> RankLost | None:
        """What a collective's error means: which rank was lost. None for any other error. Takes a few seconds."""
        if not is_of_collective(error):
            return None
        self._is_leaving = True  # By itself, so that this thread says what the other one would.
        try:
            before = self._read()
            time.sleep(_LATE * self._interval)
            after = self._read()
        except RuntimeError:
            lost = RankLost(
                "the process that keeps the ranks together is gone: torchrun, or rank 0 without it. " + self.advice()
            )
            lost.is_said = self._rank != 0
            return lost
        silent = {rank for rank, sign in enumerate(before) if sign.count == after[rank].count}
        return self._explain(silent - {self._rank}, after)

    @property
    def _interval(self) -> float:
        return min(_INTERVAL, self.timeout / 5)

    def _beat(self) -> None:
        """Beat until the end. A store that does not answer may do so again; without it nobody is heard."""
        answered, pause = time.monotonic(), self._interval
        while not self._ended.is_set():
            try:
                self._give(None)
                self._listen()
                answered, pause = time.monotonic(), self._interval
            except RuntimeError:
                if time.monotonic() - answered >= self.timeout:
                    return  # Collectives still tell of lost connections.
                pause *= 2  # Each failure is a line of torch's in the log.
            self._ended.wait(pause)

    def _listen(self) -> None:
        """Count how long each rank has been silent, in beats of our own: a machine that slept has not waited."""
        signs = self._read()
        for rank, (sign, known) in enumerate(zip(signs, self._known or signs, strict=True)):
            running = sign.end is None and rank != self._rank
            self._silent[rank] = self._silent[rank] + self._interval if running and sign == known else 0
        self._known = signs
        others_failed = any(sign.end for rank, sign in enumerate(signs) if rank != self._rank)
        self._failed = self._failed + self._interval if others_failed and not in_critical_section() else 0
        hurried = self.is_stopping() and not in_critical_section()
        patience = min(self.timeout, _STOPPING) if hurried else self.timeout
        silent = {rank for rank, seconds in enumerate(self._silent) if seconds >= patience}
        lost = silent or self._failed >= min(self.timeout, _FAILING)
        if lost and not self._is_leaving and not self._ended.is_set():
            self._give_up(self._explain(silent, signs))

    def _give_up(self, lost: RankLost) -> None:
        if not lost.is_said:
            self.on_peer_lost(str(lost))
            print(f"error (rank {self._rank}): {lost}", file=sys.stderr, flush=True)
        write_error_file(str(lost))
        os._exit(lost.exit_code)

    def _explain(self, silent: set[int], signs: list[Beat]) -> RankLost:
        failed = {rank: sign for rank, sign in enumerate(signs) if sign.end not in (None, "", _DEADLOCK)}
        silent = {rank for rank in silent if signs[rank].end is None}
        parts = [f"rank {rank} failed in {sign.doing}: {sign.end}" for rank, sign in failed.items()]
        parts += [f"rank {rank} no longer answers, last heard of in {signs[rank].doing}" for rank in sorted(silent)]
        if silent:
            parts.append("it was killed, for memory perhaps, it is frozen, or its machine is gone")
        is_deadlock = not parts
        if is_deadlock:
            places = ", ".join(f"rank {rank} in {sign.doing}" for rank, sign in enumerate(signs))
            parts = [f"ranks wait for each other in a deadlock, though all of them answer: {places}"]
        lost = RankLost(f"{'; '.join(parts)}. {self.advice()}")
        # They end as well, wherever they are. Of a lost or failed rank they hear by themselves.
        lost.end = _DEADLOCK if is_deadlock else ""
        # One of those that are left speaks for all, unless those that failed have spoken for themselves.
        left = set(range(self._size)) - silent - failed.keys()
        lost.is_said = self._rank != min(left) or (bool(failed) and not silent)
        return lost

    def _give(self, end: str | None) -> None:
        self._count += 1
        self._store.set(str(self._rank), json.dumps(asdict(Beat(self._count, self.doing, end))))

    def _read(self) -> list[Beat]:
        found = self._store.multi_get([str(rank) for rank in range(self._size)])
        return [Beat(**json.loads(text)) for text in found]


def is_of_collective(error: BaseException) -> bool:
    """Whether an error is what torch raises where ranks could not reach each other."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
