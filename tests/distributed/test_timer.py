"""The times of ranks: on two real processes against a communication hook of DDP, and in this process."""

import time
from pathlib import Path

import launcher
import pytest
import torch
from torch import nn

from seresnext.distributed import RankTimer

SCRIPT = """
import sys, time
sys.path.append(sys.argv[2])
from pathlib import Path
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from seresnext.distributed import RankTimer, ddp as ddp_module, open_world, wrap_ddp
from exactness import narrow

ddp_module._BUCKET_MB = 0.5  # The network needs several buckets.

class Sleep(nn.Module):
    def forward(self, images):
        time.sleep(0.2 * world.rank)
        return images

with open_world() as world:
    torch.manual_seed(0)
    model = nn.Sequential(Sleep(), narrow("", num_classes=5, drop_path_rate=0.0))
    ddp, timer, ready, started = wrap_ddp(model), RankTimer(model, world.device), [], []
    def hook(state, bucket):
        if bucket.is_last():
            ready.append(time.monotonic())
        return allreduce_hook(None, bucket)
    ddp.register_comm_hook(None, hook)
    model[1].layer2.register_full_backward_hook(lambda *_: time.sleep(0.05))  # long before the last gradient
    images = torch.randn(4, 2, 3, 32, 32)
    for number, micro_batch in enumerate(images):  # DDP rebuilds its buckets after the first pass.
        started.append(time.monotonic())
        if number:
            timer.start(number, 0.25)
        ddp(micro_batch).square().mean().backward()
    times = [end - start for start, end in zip(started, ready, strict=True)][1:]
    torch.save({"times": tuple(timer.read()), "hook": sum(times) / 3}, Path(sys.argv[1], f"{world.rank}.pt"))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the results of both ranks. The forward pass of rank 1 sleeps 0.2 s."""
    folder = tmp_path_factory.mktemp("times")
    (folder / "ranks.py").write_text(SCRIPT)
    launcher.complete(2, [folder / "ranks.py", folder, Path(__file__).parents[1]])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_the_end_is_the_moment_in_which_the_last_bucket_is_ready(found):
    """The oracle is a communication hook, called with the last bucket of each backward pass."""
    for rank in found:
        assert rank["times"][2] == pytest.approx(rank["hook"], abs=0.02)


def test_the_time_of_a_slow_rank_is_its_own(found):
    """Rank 0 waits 0.2 s for rank 1 in each all-reduce. The wait does not count."""
    (_, data, fast), (_, _, slow) = (rank["times"] for rank in found)
    assert slow - fast == pytest.approx(0.2, abs=0.07)
    assert data == 0.25


class Slow(nn.Module):
    def forward(self, images):
        time.sleep(0.02)
        return images


@pytest.mark.parametrize("frozen", [False, True])
def test_mean_times_of_steps(frozen):
    """A backward pass without a start, such as the warm-up, does not count."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), Slow())
    model[0].requires_grad_(not frozen)
    timer = RankTimer(model, torch.device("cpu"))
    model(torch.ones(1, 2)).sum().backward()
    assert timer.read()[1:] == (0.0, 0.0)
    for step, micro_batch in ((3, 0), (3, 1), (4, 0), (4, 1)):
        timer.start(step, 0.5 + micro_batch)
        model(torch.ones(1, 2)).sum().backward()
        time.sleep(0.05)  # The time after the last gradient does not count.
    times = timer.read()
    assert times.data == 2.0
    assert times.computing == pytest.approx(0.04, abs=0.02)
    assert timer.read()[1:] == (0.0, 0.0)


def test_a_layer_that_trains_later_is_measured_after_attach():
    """The time ends at the gradient of the first layer, and before `attach` at the gradient of the last layer."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Linear(2, 2))
    model[1].register_full_backward_hook(lambda *_: time.sleep(0.05))  # between the two gradients
    model[0].requires_grad_(False)
    timer = RankTimer(model, torch.device("cpu"))
    times = []
    for change in (lambda: None, lambda: timer.attach(model)):
        model[0].requires_grad_(True)
        change()
        timer.start(1, 0.0)
        model(torch.ones(1, 2)).sum().backward()
        times.append(timer.read().computing)
    assert times[0] < 0.05 <= times[1]


class FakeEvent:
    """An event of a device that passes when the test advances the device."""

    device_time, made = 0.0, 0

    def __init__(self, enable_timing):
        assert enable_timing
        FakeEvent.made += 1

    def record(self):
        self.time = FakeEvent.made * 10.0

    def query(self):
        return FakeEvent.device_time >= self.time

    def elapsed_time(self, end):
        assert self.query()
        assert end.query()
        return end.time - self.time


def test_on_a_gpu_events_are_read_after_the_device_has_passed_them(monkeypatch):
    """The host never waits, and the memory of events does not grow with the steps."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    model = nn.Linear(2, 2)
    timer = RankTimer(model, torch.device("cuda"))
    for step in range(100):
        FakeEvent.device_time = FakeEvent.made * 10.0 - 25
        timer.start(step, 0.0)
        model(torch.ones(1, 2)).sum().backward()
        assert len(timer._passing) <= 3
    FakeEvent.device_time = 1e9
    assert timer.read().computing == pytest.approx(0.01)  # 10 ms between two events


@pytest.mark.gpu
def test_on_a_real_gpu_nothing_waits_and_the_time_is_that_of_the_device():
    """The device is busy for longer than the host needs to queue the work. An event of torch is the oracle."""
    device = torch.device("cuda")
    model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8))).to(device)
    timer, images = RankTimer(model, device), torch.randn(4096, 4096, device=device)
    model(images).square().mean().backward()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        begin.record()
        for step in range(20):
            timer.start(step, 0.0)
            model(images).square().mean().backward()
        end.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    end.synchronize()
    assert timer.read().computing == pytest.approx(begin.elapsed_time(end) / 1000 / 20, rel=0.1)
