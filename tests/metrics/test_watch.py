"""The rules for anomalies on made-up numbers, and the slowest rank of made-up times."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import median_abs_deviation

from seresnext.distributed import RankTimes, World
from seresnext.metrics.speed import Speed
from seresnext.metrics.watch import Watch, find_slowest, usual


class Recorder:
    """A logger that keeps the events and texts."""

    def __init__(self):
        self.events, self.texts, self.logged = [], [], []

    def write(self, event, seconds_left=None, text=None, only_log=False):
        self.events.append(event)
        (self.logged if only_log else self.texts).append(text)

    @property
    def anomalies(self):
        return [(event["kind"], event["step"]) for event in self.events if event["event"] == "anomaly"]


@pytest.fixture
def logger():
    return Recorder()


@pytest.fixture
def watch(logger):
    return Watch(logger, World(), None, lambda step, replica: [f"{step}/{replica}.jpg"], 10, 100)


def losses_of(steps, noise=0.02, seed=0):
    """Return losses that fall from 6.9 to about 2, with normal noise."""
    rng = random.Random(seed)
    return [(2 + 4.9 * 0.99**step) * (1 + rng.gauss(0, noise)) for step in range(steps)]


def fed(watch, losses, norms=None):
    for step, loss in enumerate(losses):
        watch.check_step(step, [loss, loss], norms[step] if norms else 1.0)


@pytest.mark.parametrize(("values", "ratio"), [([3.0, 1, 2, 9, 4], 1.5), ([3.0, 1, 2, 3.5, 4], 1.5), ([2.0] * 5, 4)])
def test_the_limit_is_the_highest_of_three(values, ratio):
    """SciPy's median absolute deviation is the oracle. In each case another limit is the highest."""
    middle = np.median(values)
    limits = [ratio * middle, middle + 6 * median_abs_deviation(values, scale="normal"), 1.5 * max(values)]
    assert usual(values, ratio) == pytest.approx((middle, max(limits)), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_falling_losses_and_rising_norms_with_noise_are_no_anomalies(watch, logger, seed):
    """The control: a normal run. Then the rate falls to a tenth, which lowers loss and noise at once."""
    losses = losses_of(600, seed=seed)
    fed(watch, [*losses, *(loss * 0.7 for loss in losses[-300:])], [1 + step / 300 for step in range(900)])
    assert logger.events == []


def test_a_loss_spike_is_an_event_with_step_and_images(watch, logger):
    losses = losses_of(200)
    fed(watch, losses)
    watch.check_step(200, [losses[-1], 9.0], 1.0)
    (event,) = logger.events
    assert (event["kind"], event["step"], event["epoch"]) == ("loss_spike", 201, 20.1)
    assert event["value"] == pytest.approx((losses[-1] + 9.0) / 2)
    assert event["usual"] == pytest.approx(np.median(losses[-100:]))
    assert event["samples"] == ["200/1.jpg"]  # of the micro-batch with the high loss
    assert logger.texts[0].startswith("warning: loss spike: the loss of step 201 is ")
    watch.check_step(201, [9.0, 9.0], 1.0)
    assert len(logger.events) == 1  # One of a kind in an interval.
    watch.check_interval(202, Speed(100.0, 0.0), 224)
    watch.check_step(202, [14.0, 14.0], 1.0)
    assert logger.events[1]["samples"] == ["202/0.jpg", "202/1.jpg"]


def test_a_gradient_jump_names_all_images_of_the_step(watch, logger):
    fed(watch, losses_of(100))
    watch.check_step(100, [2.0, 2.0], 2.6)
    watch.check_step(101, [2.0, 2.0], 3.9)
    assert logger.events == []
    watch.check_step(102, [2.0, 2.0], 5.9)
    (event,) = logger.events
    assert (event["kind"], event["step"], event["usual"]) == ("gradient_jump", 103, 1.0)
    assert event["samples"] == ["102/0.jpg", "102/1.jpg"]


def test_wide_noise_and_a_short_window_allow_more(watch, logger):
    """The first loss is a spike in a quiet run and none in a noisy one."""
    losses = losses_of(300, noise=0.3)
    fed(watch, [*losses, 1.4 * max(losses[-100:])])
    fed(Watch(logger, World(), None, None, 10, 100), [*losses_of(99), 50.0])
    assert logger.events == []


def test_a_process_that_starts_in_the_middle_sees_the_same_spikes(watch):
    losses = losses_of(400)
    for step, loss in ((180, 20.0), (260, 21.0), (300, 40.0), (399, 70.0)):
        losses[step] = loss
    logs = []
    for start in (0, 100, 199):
        logger = Recorder()
        resumed = Watch(logger, World(), None, lambda step, replica: [], 10, 100)
        for step in range(start, 400):
            resumed.check_step(step, [losses[step]], 1.0)
            if step % 5 == 4:
                resumed.check_interval(step + 1, Speed(100.0, 0.0), 224)
        logs.append([event for event in logger.events if event["step"] > 300])
    assert [event["step"] for event in logs[0]] == [301, 400]
    assert logs[0] == logs[1] == logs[2]


def intervals(watch, speeds, image_size=224, first=0):
    for number, speed in enumerate(speeds, first):
        watch.check_step(10 * number + 9, [2.0, 2.0], 1.0)
        watch.check_interval(10 * (number + 1), Speed(speed, 0.0), image_size)


@pytest.mark.parametrize(
    ("speeds", "drops"),
    [
        # The first interval has compiled. Only a new low is an event.
        ([20.0, *[100.0, 104.0, 97.0] * 3, 78.0, 69.0, 63.0, 56.0], [12, 14]),
        ([100.0, *[100.0, 60.0, 130.0, 90.0] * 5, 58.0, 50.0], [23]),  # A machine of changing speed.
    ],
)
def test_a_throughput_drop_is_an_event(watch, logger, speeds, drops):
    intervals(watch, speeds)
    assert logger.anomalies == [("throughput_drop", 10 * number) for number in drops]
    if drops[0] == 12:
        assert logger.events[0]["usual"] == 100.0
        assert logger.events[0]["samples"] == ["119/0.jpg", "119/1.jpg"]  # of the last step
        assert logger.texts[0].startswith("warning: throughput drop: 69.0 images/s up to step 120, usual are 100.0; ")


def test_progressive_sizes_are_no_throughput_drop(watch, logger):
    intervals(watch, [300.0] * 8, image_size=128)
    intervals(watch, [90.0, *[150.0] * 8, 60.0], image_size=192, first=8)
    assert logger.anomalies == [("throughput_drop", 180)]


def test_an_interval_of_traced_steps_or_of_few_steps_is_not_compared(watch, logger):
    intervals(watch, [*[100.0] * 8, None])
    watch.check_interval(94, Speed(10.0, 9.0), 224)
    assert logger.anomalies == []
    watch.check_interval(99, Speed(10.0, 9.0), 224)
    assert logger.anomalies == [("throughput_drop", 99), ("data_starvation", 99)]


def test_data_starvation_is_an_event_when_it_begins(watch, logger):
    """A step of 100 images at 100 images/s takes a second."""
    for number, wait in enumerate([0.9, 0.2, 0.31, 0.5, 0.2, 0.4, 0.1, 0.35]):
        watch.check_step(10 * number + 9, [2.0], 1.0)
        watch.check_interval(10 * (number + 1), Speed(100.0, wait), 224)
    assert logger.anomalies == [("data_starvation", 30), ("data_starvation", 80)]
    assert [event["samples"] for event in logger.events] == [["29/0.jpg"], ["79/0.jpg"]]
    text = (
        "warning: data starvation: up to step 30, 31% of the time is a wait for images (0.310 s a step); metrics.jsonl"
    )
    assert logger.texts[0].startswith(text)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(0.1, 1.0), (0.1, 1.4), (0.1, 1.0)], (1, "computing", 1.4, 1.0, 0.4 / 1.1)),
        ([(0.1, 1.0), (0.0, 1.0), (0.0, 1.0), (0.9, 1.1)], (3, "data", 0.9, 0.0, 1.0)),
        ([(0.0, 1.0), (0.0, 1.0)], (0, "computing", 1.0, 1.0, 0.0)),
    ],
    ids=["computing", "data", "all equal"],
)
def test_the_slowest_rank_and_the_part(times, expected):
    found = find_slowest([RankTimes(f"host{rank}", *of_rank) for rank, of_rank in enumerate(times)])
    assert found.pop("host") == f"host{expected[0]}"
    assert tuple(found.values()) == (*expected[:-1], pytest.approx(expected[-1]))


@pytest.mark.parametrize("computing", [1.0, 1.09, 1.11])
def test_each_interval_logs_the_slowest_rank_and_prints_a_slow_one(logger, computing):
    timer = SimpleNamespace(read=lambda: RankTimes("node6", 0.0, 1.0))
    world = SimpleNamespace(gather=lambda times: [times, ("node7", 0.0, computing)])
    watch = Watch(logger, world, timer, None, 10, 100)
    intervals(watch, [100.0] * 2)
    assert [event["event"] for event in logger.events] == ["slowest_rank"] * 2
    (text, _) = logger.texts or logger.logged
    assert bool(logger.texts) is (computing == 1.11)
    if computing == 1.11:
        assert text == ("slowest rank up to step 10: rank 1 on node7 computes 1.110 s a step, the other ranks 1.000 s")
        assert logger.events[0] == {
            "event": "slowest_rank", "step": 10, "epoch": 1.0, "rank": 1, "host": "node7", "part": "computing",
            "seconds": 1.11, "others": 1.0, "slower": pytest.approx(0.11),
        }  # fmt: skip
