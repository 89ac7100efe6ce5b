"""The watch over a run: anomalies in the logged numbers, and the slowest rank. docs/training.md states all rules."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from seresnext.distributed import RankTimer, RankTimes, World
from seresnext.metrics.logger import RunLogger
from seresnext.metrics.speed import Speed

_STEPS = 50  # steps of the window of losses and gradients
_INTERVALS = (5, 20)  # the fewest and the most intervals of the window of speeds
_SPREADS = 6.0  # distance from the median of a window, in robust standard deviations
_LOSS_RATIO, _GRADIENT_RATIO, _SPEED_RATIO = 1.5, 4.0, 0.7  # of the median of a window
_STARVED, _FED = 0.3, 0.15  # shares of the wait for images: starvation begins above the first, ends below the second
_SLOW = 0.1  # share by which the slowest rank has to be slower than the other ranks, to be printed


class Usual(NamedTuple):
    """The usual value of a window: the median, and the spread: 1.4826 MAD, the standard deviation of a normal one."""

    value: float
    spread: float

    def is_far(self, value: float, ratio: float) -> bool:
        """Return whether a value lies beyond `ratio` times the usual value, and outside of the spread."""
        distance, allowed = value - self.value, (ratio - 1) * self.value
        return distance / allowed > 1 and abs(distance) > _SPREADS * self.spread if allowed else False


def usual(window: Iterable[float]) -> Usual:
    """Return the usual value of a window (median and median absolute deviation, Rousseeuw and Croux 1993)."""
    values = list(window)
    middle = median(values)
    return Usual(middle, 1.4826 * median(abs(value - middle) for value in values))


class SlowestRank(NamedTuple):
    """The slowest rank of an interval, and the part of the work in which the rank is behind the other ranks.

    seconds, others: mean seconds a step for this part, of the rank and as the median of the other ranks. slower: the
    share by which data and computing take longer than on the other ranks.
    """

    rank: int
    host: str
    part: str
    seconds: float
    others: float
    slower: float


def find_slowest(ranks: Sequence[RankTimes]) -> SlowestRank:
    """Return the rank with the longest time for data and computing, of at least two ranks."""
    rank = max(range(len(ranks)), key=lambda rank: ranks[rank].data + ranks[rank].computing)
    own, others = ranks[rank], [times for number, times in enumerate(ranks) if number != rank]
    data, computing = (median(getattr(times, part) for times in others) for part in ("data", "computing"))
    slower = (own.data + own.computing) / max(data + computing, 1e-9) - 1
    if own.data - data > own.computing - computing:
        return SlowestRank(rank, own.host, "data", own.data, data, slower)
    return SlowestRank(rank, own.host, "computing", own.computing, computing, slower)


class Watch:
    """An observer of the steps and intervals of a run, which logs anomalies and the slowest rank.

    All ranks see the same losses and gradients. `names(step, replica)` gives the samples of a micro-batch. An interval
    has one anomaly of a kind at most. The windows start empty in each process.
    """

    def __init__(
        self,
        logger: RunLogger,
        world: World,
        timer: RankTimer | None,
        names: Callable[[int, int], list[str]],
        steps_per_epoch: int,
        global_size: int,
    ) -> None:
        self._logger, self._world, self._timer, self._names = logger, world, timer, names
        self._steps_per_epoch, self._global_size = steps_per_epoch, global_size
        self._losses: deque[float] = deque(maxlen=_STEPS)
        self._grad_norms: deque[float] = deque(maxlen=_STEPS)
        self._speeds: deque[float] = deque(maxlen=_INTERVALS[1])
        self._image_size: int | None = None
        self._is_starved = False
        self._logged: set[str] = set()
        self._steps = 0

    def check_step(self, step: int, losses: Sequence[float], grad_norm: float) -> None:
        """Look for a loss spike or a gradient jump in step number `step` (from 0) with finite numbers.

        `losses` has the mean losses of the micro-batches. The samples of a spike are those of the micro-batches with a
        loss above the limit, or of all micro-batches if only the mean is above the limit.
        """
        loss = sum(losses) / len(losses)
        if len(self._losses) == _STEPS:
            expected, gradient = usual(self._losses), usual(self._grad_norms)
            if expected.is_far(loss, _LOSS_RATIO):
                high = [replica for replica, one in enumerate(losses) if expected.is_far(one, _LOSS_RATIO)]
                text = f"the loss of step {step + 1} is {loss:.4g}, usual is {expected.value:.4g}"
                self._report("loss_spike", step + 1, loss, expected.value, text, high or range(len(losses)))
            if gradient.is_far(grad_norm, _GRADIENT_RATIO):
                text = f"the gradient norm of step {step + 1} is {grad_norm:.4g}, usual is {gradient.value:.4g}"
                self._report("gradient_jump", step + 1, grad_norm, gradient.value, text, range(len(losses)))
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)

    def check_interval(self, step: int, speed: Speed, image_size: int) -> None:
        """Log the slowest rank of the interval that ends after `step` steps, and look for anomalies of the speed.

        The first interval of a process and the first of another image size are not compared: the loader fills its
        queue, and the compiler may work.
        """
        self._logged.clear()
        data_wait = self._log_slowest(step, speed)
        if self._image_size != image_size or speed.images_per_second is None:
            self._image_size = image_size
            self._speeds.clear()
            return
        images_per_second = speed.images_per_second
        if len(self._speeds) >= _INTERVALS[0]:
            expected = usual(self._speeds)
            if expected.is_far(images_per_second, _SPEED_RATIO):
                text = f"{images_per_second:.1f} images/s up to step {step}, usual are {expected.value:.1f}"
                self._report("throughput_drop", step, images_per_second, expected.value, text)
        self._speeds.append(images_per_second)
        share = data_wait * images_per_second / self._global_size
        if share > _STARVED and not self._is_starved:
            text = f"up to step {step}, {share:.0%} of the time is a wait for images ({data_wait:.3f} s a step)"
            self._report("data_starvation", step, share, _STARVED, text)
        self._is_starved = share > (_FED if self._is_starved else _STARVED)

    def _log_slowest(self, step: int, speed: Speed) -> float:
        """Log the slowest rank, if there are several. Return the longest wait for images, in seconds a step."""
        if self._timer is None:
            return speed.data_wait or 0.0
        ranks = [RankTimes(*times) for times in self._world.gather(tuple(self._timer.read()))]
        slowest = find_slowest(ranks)
        work = "waits for images" if slowest.part == "data" else "computes"
        text = (
            f"slowest rank up to step {step}: rank {slowest.rank} on {slowest.host} {work} {slowest.seconds:.3f} s a "
            f"step, the other ranks {slowest.others:.3f} s"
        )
        event = {"event": "slowest_rank", **self._place(step), **slowest._asdict()}
        self._logger.write(event, text=text, only_log=slowest.slower < _SLOW)
        return max(times.data for times in ranks)

    def _report(
        self, kind: str, step: int, value: float, expected: float, text: str, replicas: Sequence[int] = ()
    ) -> None:
        if kind in self._logged:
            return
        self._logged.add(kind)
        event = {"event": "anomaly", "kind": kind, **self._place(step), "value": value, "usual": expected}
        if replicas:
            event["samples"] = [name for replica in replicas for name in self._names(step - 1, replica)]
            text += "; metrics.jsonl names the images"
        self._logger.write(event, text=f"warning: {kind.replace('_', ' ')}: {text}")

    def _place(self, step: int) -> dict[str, Any]:
        return {"step": step, "epoch": step / self._steps_per_epoch}
