"""Speed and remaining time, measured with a fake clock."""

import inspect

import pytest

from seresnext.metrics import speed
from seresnext.metrics.speed import EtaClock, SpeedMeter, format_seconds


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_speed_of_a_window():
    clock = FakeClock()
    meter = SpeedMeter(clock)
    for _ in range(4):
        clock.now += 0.5
        meter.add(32, data_wait=0.1)
    measured = meter.read()
    assert measured.images_per_second == pytest.approx(64)
    assert measured.data_wait == pytest.approx(0.1)


def test_each_window_starts_at_zero():
    clock = FakeClock()
    meter = SpeedMeter(clock)
    clock.now += 1
    meter.add(10)
    meter.read()
    clock.now += 2
    meter.add(10)
    assert meter.read().images_per_second == pytest.approx(5)


def test_pauses_do_not_count_even_after_an_error():
    clock = FakeClock()
    meter = SpeedMeter(clock)
    clock.now += 1
    meter.add(10)

    def validate():
        with meter.paused():
            clock.now += 100
            raise ValueError("validation failed")

    with pytest.raises(ValueError, match="validation failed"):
        validate()
    assert meter.read().images_per_second == pytest.approx(10)


def test_empty_window():
    assert SpeedMeter(FakeClock()).read() == (0.0, 0.0)


def test_eta_excludes_the_first_step():
    clock = FakeClock()
    eta = EtaClock(total_steps=100, clock=clock)
    clock.now += 60  # compilation
    assert eta.update(1) is None
    clock.now += 20
    assert eta.update(11) == pytest.approx(89 * 2)
    clock.now += 178
    assert eta.update(100) == 0


def test_eta_after_a_resume_counts_steps_of_this_process():
    clock = FakeClock()
    eta = EtaClock(total_steps=1000, clock=clock)
    eta.update(900)
    clock.now += 50
    assert eta.update(950) == pytest.approx(50)


def test_wall_clock_is_not_used():
    """Wall time can jump when the clock of the machine is set."""
    assert inspect.signature(SpeedMeter).parameters["clock"].default is speed.time.monotonic
    assert inspect.signature(EtaClock).parameters["clock"].default is speed.time.monotonic
    assert "time.time" not in inspect.getsource(speed)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (183845, "2d 03:04:05")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
