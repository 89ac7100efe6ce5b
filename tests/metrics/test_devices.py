"""Memory and utilisation of a GPU."""

import pytest
import torch

from seresnext.metrics.devices import device_usage


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

    def refuse(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert device_usage(torch.device("cuda")) == {"gpu_memory_gb": 1.5}
