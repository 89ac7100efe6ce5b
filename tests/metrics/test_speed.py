"""Speed and remaining time, measured with a fake clock, and the use of a GPU."""

from unittest.mock import Mock

import pytest
import torch

from seresnext.metrics.speed import SpeedMeter, device_usage


@pytest.fixture
def clock():
    return Mock(return_value=1000.0)


def test_speed_of_each_window(clock):
    meter = SpeedMeter(clock)
    assert meter.read("train") == (None, None, None)  # no step
    for seconds, data_wait in ((0.5, 0.1), (2.0, 0.0)):
        for _ in range(4):
            clock.return_value += seconds
            meter.add(32, data_wait)
        assert meter.read("train") == (pytest.approx(32 / seconds), pytest.approx(data_wait), pytest.approx(seconds))
    assert meter.read("epoch") == (pytest.approx(32 * 8 / 10), pytest.approx(0.05), pytest.approx(10 / 8))
    assert meter.read("epoch") == (None, None, None)


def test_pauses_do_not_count(clock):
    meter = SpeedMeter(clock)
    clock.return_value += 1
    meter.add(10)
    with meter.paused():
        clock.return_value += 100
    assert meter.read("train").images_per_second == pytest.approx(10)


@pytest.mark.parametrize("first", [1, 900])
def test_eta_counts_the_steps_of_this_process_after_the_first(clock, first):
    meter = SpeedMeter(clock)
    clock.return_value += 60  # compilation
    assert meter.seconds_left(first, 1000) is None
    with meter.paused():
        clock.return_value += 20
    assert meter.seconds_left(first + 10, 1000) == pytest.approx((1000 - first - 10) * 2)
    assert meter.seconds_left(1000, 1000) == 0


def test_a_cpu_has_no_numbers():
    assert device_usage(torch.device("cpu")) == {}


@pytest.mark.gpu
def test_the_peak_is_of_the_time_since_the_last_call():
    device = torch.device("cuda", torch.cuda.current_device())
    large = torch.empty(2**30, dtype=torch.uint8, device=device)
    assert device_usage(device)["gpu_memory_gb"] >= 1
    del large
    device_usage(device)
    assert device_usage(device)["gpu_memory_gb"] < 1


def test_without_a_driver_only_the_memory_is_logged(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 80)
    assert device_usage(torch.device("cuda")) == {"gpu_memory_gb": 1.5, "gpu_utilisation": 80}
    monkeypatch.setattr(torch.cuda, "utilization", Mock(side_effect=ModuleNotFoundError("pynvml")))
    assert device_usage(torch.device("cuda")) == {"gpu_memory_gb": 1.5}
