"""The watch over a run: anomalies in the logged numbers, and the slowest rank. docs/training.md states all rules."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from seresnext.distributed import RankTimer, RankTimes, World
from seresnext.metrics.logger import RunLogger
from seresnext.metrics.speed import Speed

_STEPS = 100  # of the window of losses and gradients
_INTERVALS = (5, 20)  # the fewest and the most intervals of the window of speeds
_SPREADS = 6.0  # distance of a spike from the median of the window, in robust standard deviations
_LOSS_RATIO, _GRADIENT_RATIO = 1.5, 4.0  # of a spike to the median of the window
_NEW_HIGH, _NEW_LOW = 1.5, 0.9  # of a spike to the maximum of the window, of a drop to the minimum
_SPEED_RATIO = 0.7  # of a drop to the median of the window
_STARVED, _FED = 0.3, 0.15  # shares of the wait for images: starvation begins above the first, ends below the second
_FEWEST_STEPS = 5  # of an interval whose speed is compared
_SLOW = 0.1  # share by which the slowest rank has to be slower than the other ranks, to be printed


def usual(window: Sequence[float], ratio: float) -> tuple[float, float]:
    """Return the usual value of a window, which is the median, and the limit above which a number is a spike.

    A spike is above `ratio` times the median, outside of the noise, and a new high. The noise is six times 1.4826 MAD,
    the median absolute deviation as an estimate of the standard deviation (Rousseeuw and Croux 1993). The new high
    matters for small batches, whose losses are far from normal: one hard image is a large part of the loss.
    """
    middle = median(window)
    spread = 1.4826 * median(abs(value - middle) for value in window)
    return middle, max(ratio * middle, middle + _SPREADS * spread, _NEW_HIGH * max(window))


def find_slowest(ranks: Sequence[RankTimes]) -> dict[str, Any]:
    """Return the fields of a `slowest_rank` event: the longest time for data and computing, of at least two ranks.

    part: in which the rank is behind the other ranks. seconds, others: mean seconds a step for this part, of the rank
    and as the median of the other ranks. slower: the share by which both parts take longer than on the other ranks.
    """
    rank = max(range(len(ranks)), key=lambda rank: ranks[rank].data + ranks[rank].computing)
    own, others = ranks[rank], [*ranks[:rank], *ranks[rank + 1 :]]
    medians = {part: median(getattr(times, part) for times in others) for part in ("computing", "data")}
    part = max(medians, key=lambda part: getattr(own, part) - medians[part])
    slower = (own.data + own.computing) / max(sum(medians.values()), 1e-9) - 1
    seconds = {"seconds": getattr(own, part), "others": medians[part], "slower": slower}
    return {"rank": rank, "host": own.host, "part": part, **seconds}


@dataclass(eq=False)
class Watch:
    """An observer of the steps and intervals of a run, which logs anomalies and the slowest rank.

    All ranks see the same losses and gradients. `names(step, replica)` gives the samples of a micro-batch. An interval
    has one anomaly of a kind at most. The windows start empty in each process.
    """

    logger: RunLogger
    world: World
    timer: RankTimer | None
    names: Callable[[int, int], list[str]]
    steps_per_epoch: int
    global_size: int

    def __post_init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_STEPS)
        self._grad_norms: deque[float] = deque(maxlen=_STEPS)
        self._speeds: deque[float] = deque(maxlen=_INTERVALS[1])
        self._image_size: int | None = None
        self._is_starved = False
        self._logged: set[str] = set()
        self._checked = 0  # the step at the end of the last interval
        self._replicas = range(0)  # of a step

    def check_step(self, step: int, losses: Sequence[float], grad_norm: float) -> None:
        """Look for a loss spike or a gradient jump in step number `step` (from 0) with finite numbers.

        `losses` has the mean losses of the micro-batches. A spike names the samples of the micro-batches whose loss is
        above the limit. A gradient is of all micro-batches.
        """
        loss, self._replicas = sum(losses) / len(losses), range(len(losses))
        if len(self._losses) == _STEPS:
            expected, limit = usual(self._losses, _LOSS_RATIO)
            if loss > limit:
                high = [replica for replica, one in enumerate(losses) if one > limit]
                text = f"the loss of step {step + 1} is {loss:.4g}, usual is {expected:.4g}"
                self._report("loss_spike", step + 1, loss, expected, text, high)
            expected, limit = usual(self._grad_norms, _GRADIENT_RATIO)
            if grad_norm > limit:
                text = f"the gradient norm of step {step + 1} is {grad_norm:.4g}, usual is {expected:.4g}"
                self._report("gradient_jump", step + 1, grad_norm, expected, text, self._replicas)
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)

    def check_interval(self, step: int, speed: Speed, image_size: int) -> None:
        """Log the slowest rank of the interval that ends after `step` steps, and look for anomalies of the speed.

        The first interval of a process and the first of another image size are not compared, because the compiler may
        work there and the loader fills its queue. Intervals of few steps are not compared either. An event names the
        samples of the last step.
        """
        self._logged.clear()
        data_wait, images_per_second = self._log_slowest(step, speed), speed.images_per_second
        steps, self._checked = step - self._checked, step
        if self._image_size != image_size:
            self._image_size = image_size
            self._speeds.clear()
            return
        if steps < _FEWEST_STEPS or images_per_second is None:
            return
        if len(self._speeds) >= _INTERVALS[0]:
            expected = median(self._speeds)
            if images_per_second < min(_SPEED_RATIO * expected, _NEW_LOW * min(self._speeds)):
                text = f"{images_per_second:.1f} images/s up to step {step}, usual are {expected:.1f}"
                self._report("throughput_drop", step, images_per_second, expected, text, self._replicas)
        self._speeds.append(images_per_second)
        share = data_wait * images_per_second / self.global_size
        if share > _STARVED and not self._is_starved:
            text = f"up to step {step}, {share:.0%} of the time is a wait for images ({data_wait:.3f} s a step)"
            self._report("data_starvation", step, share, _STARVED, text, self._replicas)
        self._is_starved = share > (_FED if self._is_starved else _STARVED)

    def _log_slowest(self, step: int, speed: Speed) -> float:
        """Log the slowest rank, if there are several. Return the longest wait for images, in seconds a step."""
        if self.timer is None:
            return speed.data_wait or 0.0
        ranks = [RankTimes(*times) for times in self.world.gather(tuple(self.timer.read()))]
        slowest = find_slowest(ranks)
        work = "waits for images" if slowest["part"] == "data" else "computes"
        text = (
            f"slowest rank up to step {step}: rank {slowest['rank']} on {slowest['host']} {work} "
            f"{slowest['seconds']:.3f} s a step, the other ranks {slowest['others']:.3f} s"
        )
        event = {"event": "slowest_rank", "step": step, "epoch": step / self.steps_per_epoch, **slowest}
        self.logger.write(event, text=text, only_log=slowest["slower"] < _SLOW)
        return max(times.data for times in ranks)

    def _report(self, kind: str, step: int, value: float, expected: float, text: str, replicas: Sequence[int]) -> None:
        if kind in self._logged:
            return
        self._logged.add(kind)
        place = {"step": step, "epoch": step / self.steps_per_epoch}
        event: dict[str, Any] = {"event": "anomaly", "kind": kind, **place, "value": value, "usual": expected}
        event["samples"] = [name for replica in replicas for name in self.names(step - 1, replica)]
        self.logger.write(event, text=f"warning: {kind.replace('_', ' ')}: {text}; metrics.jsonl names the images")
