"""Speed and remaining time, measured with a fake clock."""

import pytest

from seresnext.metrics.speed import EtaClock, SpeedMeter


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


def test_speed_of_each_window(clock):
    meter = SpeedMeter(clock)
    assert meter.read("train") == (None, None, None)  # no step
    for seconds, data_wait in ((0.5, 0.1), (2.0, 0.0)):
        for _ in range(4):
            clock.now += seconds
            meter.add(32, data_wait)
        assert meter.read("train") == (pytest.approx(32 / seconds), pytest.approx(data_wait), pytest.approx(seconds))
    assert meter.read("epoch") == (pytest.approx(32 * 8 / 10), pytest.approx(0.05), pytest.approx(10 / 8))
    assert meter.read("epoch") == (None, None, None)


def test_pauses_do_not_count_even_after_an_error(clock):
    meter = SpeedMeter(clock)
    clock.now += 1
    meter.add(10)

    def validate():
        with meter.paused():
            clock.now += 100
            raise ValueError("validation failed")

    with pytest.raises(ValueError, match="validation failed"):
        validate()
    assert meter.read("train").images_per_second == pytest.approx(10)


@pytest.mark.parametrize("first", [1, 900])
def test_eta_counts_the_steps_of_this_process_after_the_first(clock, first):
    eta = EtaClock(total_steps=1000, clock=clock)
    clock.now += 60  # compilation
    assert eta.update(first) is None
    clock.now += 20
    assert eta.update(first + 10) == pytest.approx((1000 - first - 10) * 2)
    assert eta.update(1000) == 0
