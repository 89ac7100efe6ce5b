"""GPUs that torch does not see. A folder stands for the machine."""

import pytest
import torch

from seresnext.distributed import choose_device
from seresnext.distributed.devices import refuse_unseen_gpus
from seresnext.errors import UsageError

DRIVERS = {
    "535.104.05": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\nGCC version: 12",
    "580.65.06": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@x)",
    "470.82": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82  Thu Sep 9 00:00:00 UTC 2021",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(gpus, driver, cuda) -> message`: the refusal on a machine with a torch for this CUDA, or no text."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    dev, file = tmp_path / "dev", tmp_path / "version"
    dev.mkdir()

    def fail():
        raise RuntimeError("The driver is too old (found version 11040). Please update it by downloading: http://x")

    monkeypatch.setattr(torch.cuda, "init", fail)

    def refused(gpus=2, driver="535.104.05", cuda="13.0"):
        for name in ("nvidiactl", "nvidia-uvm", "null", *(f"nvidia{number}" for number in range(gpus))):
            (dev / name).touch()
        file.write_text(DRIVERS.get(driver, ""))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        try:
            refuse_unseen_gpus(dev, file)
        except UsageError as error:
            return str(error)
        return ""

    return refused


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_old_driver(machine, driver):
    message = machine(driver=driver)
    texts = ("nvidia0, nvidia1;", f"driver {driver})", "CUDA 13.0", "too old (found version 11040)", "--device cpu")
    assert [text for text in texts if text not in message] == []
    assert "downloading" not in message


def test_a_cpu_build(machine):
    message = machine(cuda=None)
    assert f"torch {torch.__version__} (a CPU build)" in message
    assert "535.104.05" in message


def test_no_visible_driver_and_no_gpu(machine):
    """A container without a GPU has the driver of the host in /proc, too, and uses the CPU."""
    assert machine(gpus=0) == ""
    assert "driver unknown" in machine(driver="")


@pytest.mark.parametrize(
    ("visible", "hidden"),
    [("", True), ("-1", True), (" ", True), ("-1,0", True), ("NoDevFiles", True), ("9", False), ("0,1", False)],
)
def test_hidden_gpus_are_not_used(machine, monkeypatch, visible, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    message = machine()
    assert (message == "") is hidden
    if not hidden:
        assert f"CUDA_VISIBLE_DEVICES (now {visible})" in message


def test_only_auto_looks_for_gpus(monkeypatch):
    looks = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("seresnext.distributed.devices.refuse_unseen_gpus", lambda: looks.append(1))
    assert choose_device("cpu") == torch.device("cpu")
    assert looks == []
    assert choose_device("auto") == torch.device("cpu")
    assert looks == [1]
