"""Heartbeats between the ranks of a run, so that a message can name the rank that was killed, froze or failed.

A collective that fails or never returns gives little information: gloo names an address, NCCL a timeout. Each second
every rank therefore publishes a beat with its activity in the store through which the ranks found each other.
"""

# The stores are public, but torch does not export them.
# pyright: reportPrivateImportUsage=false
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch.distributed as dist

from seresnext.errors import RankLost
from seresnext.process.ranks import print_failure
from seresnext.process.signals import in_critical_section

_INTERVAL = 1.0  # seconds between two beats
# Seconds of silence after which a rank is lost, if this rank has a stop request. When a rank dies, torchrun sends
# SIGTERM to all other ranks and kills them 30 s later. The message must come before.
_STOPPING = 5.0
# Seconds that a rank has to end by itself after another rank failed. Two ranks with the same failure need some time.
_FAILING = 10.0
_LATE = 3  # intervals that a beat may be late, because a machine is busy or a rank is about to leave
_DEADLOCK = "deadlock"  # the end of a rank that waited for ranks which are alive


class Beat(NamedTuple):
    """A beat of a rank. `number` rises. `end` is None while the rank runs, then the error, or "" for a good end."""

    number: int
    activity: str
    end: str | None = None


class Heartbeat:
    """The beats of this rank, and a check of the beats of the other ranks, in a thread.

    A rank that is silent for `timeout` seconds is lost. This process then ends, because its main thread waits in a
    collective that nothing else can end. With a stop request (`is_stopping`), or after another rank failed, the process
    ends sooner, but never while it writes a checkpoint. `on_peer_lost` is called with the message, in the thread,
    before the process ends. `advice` returns the last sentence of the message: how to resume the run. The message of
    the other ranks has the `activity` of a lost rank.

    With `watches_store`, a store that does not answer for `timeout` seconds ends this process, too. Of each machine one
    rank `prints` that. The heartbeat of a process alone is never started.
    """

    on_peer_lost: Callable[[str], None] = staticmethod(lambda message: None)
    advice: Callable[[], str] = staticmethod(lambda: "Run the same command again")

    def __init__(self, store: dist.Store | None = None, rank: int = 0, size: int = 1, timeout: float = 600.0) -> None:
        self.timeout = timeout
        self.activity = "the start"
        self.is_stopping: Callable[[], bool] = lambda: False
        self.watches_store, self.prints = False, True
        self._store = store or dist.HashStore()
        self._rank, self._size = rank, size
        self._count = self._answers = 0
        self._silent = [0.0] * size
        self._failed = 0.0
        self._is_leaving = False
        self._known: list[Beat] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        if self.watches_store:
            threading.Thread(target=self._watch, name="heartbeat of the store", daemon=True).start()

    def stop(self, end: str) -> None:
        """Stop the threads and publish how this rank ends: an error in words, or ""."""
        self._ended.set()
        self._thread.join(_INTERVAL)  # The thread may wait for a rank that never started.
        with suppress(RuntimeError):  # The process that held the store has ended.
            self._publish(end)

    def explain(self, error: BaseException) -> RankLost | None:
        """Return the failure behind an error of a collective: the lost rank. Takes a few seconds.

        Returns None for any other error.
        """
        if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and "/gloo/" in str(error)):
            return None
        self._is_leaving = True  # The thread must not end this process with the same message.
        try:
            before = self._read()
            time.sleep(_LATE * self._interval)
            after = self._read()
        except RuntimeError:
            return self._describe_lost_store()
        silent = {rank for rank, beat in enumerate(before) if beat.number == after[rank].number}
        return self._describe(silent - {self._rank}, after)

    @property
    def _interval(self) -> float:
        return min(_INTERVAL, self.timeout / 5)

    def _run(self) -> None:
        """Beat until the end. After an error of the store, try again until the timeout."""
        answered, pause = time.monotonic(), self._interval
        while not self._ended.is_set():
            try:
                self._publish(None)
                self._check_peers()
                self._answers += 1
                answered, pause = time.monotonic(), self._interval
            except RuntimeError:
                if time.monotonic() - answered >= self.timeout:
                    return  # Collectives still report lost connections, and `_watch` a lost machine.
                pause *= 2  # torch logs a line for each error.
            self._ended.wait(pause)

    def _watch(self) -> None:
        """End this process if the store does not answer for too long.

        A store on a lost machine does not only fail: torch can wait for its answer longer than any timeout, until the
        kernel gives up the connection (TCPStoreClient::wait, after CANCEL_WAIT; 15 minutes).
        """
        known, silent = 0, 0.0
        while not self._ended.wait(self._interval):
            # The store first waits for the slowest rank. Intervals of this thread: suspended machines do not count.
            silent = silent + self._interval if known == self._answers > 0 else 0
            known = self._answers
            if silent >= self._patience and not in_critical_section():
                self._exit(self._describe_lost_store())

    @property
    def _patience(self) -> float:
        return min(self.timeout, _STOPPING) if self.is_stopping() and not in_critical_section() else self.timeout

    def _check_peers(self) -> None:
        """Count the seconds of silence of each rank, in intervals of this thread: suspended machines do not count."""
        beats = self._read()
        for rank, (beat, known) in enumerate(zip(beats, self._known or beats, strict=True)):
            running = beat.end is None and rank != self._rank
            self._silent[rank] = self._silent[rank] + self._interval if running and beat == known else 0
        self._known = beats
        others_failed = any(beat.end for rank, beat in enumerate(beats) if rank != self._rank)
        self._failed = self._failed + self._interval if others_failed and not in_critical_section() else 0
        silent = {rank for rank, seconds in enumerate(self._silent) if seconds >= self._patience}
        lost = silent or self._failed >= min(self.timeout, _FAILING)
        if lost and not self._is_leaving and not self._ended.is_set():
            self._exit(self._describe(silent, beats))

    def _exit(self, lost: RankLost) -> None:
        if not lost.is_printed:
            self.on_peer_lost(str(lost))
        print_failure(lost, True, self.is_stopping)
        os._exit(lost.exit_code)

    def _describe(self, silent: set[int], beats: list[Beat]) -> RankLost:
        failed = {rank: beat for rank, beat in enumerate(beats) if beat.end not in (None, "", _DEADLOCK)}
        silent = {rank for rank in silent if beats[rank].end is None}
        parts = [f"rank {rank} failed in {beat.activity}: {beat.end}" for rank, beat in failed.items()]
        parts += [f"rank {rank} no longer answers, last seen in {beats[rank].activity}" for rank in sorted(silent)]
        if silent:
            parts.append("the rank was killed (perhaps because memory ran out), is frozen, or its machine is gone")
        is_deadlock = not parts
        if is_deadlock:
            places = ", ".join(f"rank {rank} in {beat.activity}" for rank, beat in enumerate(beats))
            parts = [f"deadlock: all ranks are alive, but each waits for another: {places}"]
        lost = RankLost(f"{'; '.join(parts)}. {self.advice()}")
        # A deadlock ends the other ranks, too. They detect a lost or failed rank by themselves.
        lost.end = _DEADLOCK if is_deadlock else ""
        # The lowest remaining rank prints the message. If ranks failed and none is silent, the failed ranks print.
        left = set(range(self._size)) - silent - failed.keys()
        lost.is_printed = self._rank != min(left) or (bool(failed) and not silent)
        return lost

    def _describe_lost_store(self) -> RankLost:
        lost = RankLost(
            "the process that connects the ranks (torchrun or rank 0) no longer answers; the process has ended, or its "
            f"machine cannot be reached. {self.advice()}"
        )
        lost.is_printed = not self.prints
        return lost

    def _publish(self, end: str | None) -> None:
        self._count += 1
        self._store.set(str(self._rank), json.dumps(Beat(self._count, self.activity, end)))

    def _read(self) -> list[Beat]:
        found = self._store.multi_get([str(rank) for rank in range(self._size)])
        return [Beat(*json.loads(text)) for text in found]
