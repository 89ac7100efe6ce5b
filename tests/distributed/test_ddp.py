"""Gradients of two real processes against the mean of the gradients of each, and the times of ranks."""

import time
from pathlib import Path

import launcher
import pytest
import torch
from torch import nn

from seresnext.distributed import RankTimer

SCRIPT = """
import copy, sys
from pathlib import Path
import torch
from torch import nn
from seresnext.distributed import RankTimer, ddp as ddp_module, open_world, wrap_ddp

def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]

def backward(forward, images):
    (forward(images) ** 2).mean().backward()

with open_world() as world:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 50))
    torch.manual_seed(100 + world.rank)
    first, second = torch.randn(2, 4, 3, 6, 6)
    found = {"own": []}
    for accumulated in ([second], [first, second]):
        alone = copy.deepcopy(model)
        for images in accumulated:
            backward(alone, images)
        found["own"].append(gradients(alone))
    for name in ("plain", "compressed", "small buckets"):
        shared = copy.deepcopy(model)
        ddp_module._BUCKET_MB = 0.001 if name == "small buckets" else 25
        timer = RankTimer(world.device)
        ddp = wrap_ddp(shared, name == "compressed", timer)
        backward(ddp, first)  # DDP rebuilds its buckets after the first step.
        ddp.zero_grad()
        found[name] = []
        for accumulated in ([second], [first, second]):
            for images in accumulated[:-1]:
                with ddp.no_sync():
                    backward(ddp, images)
            timer.start(0, 0.0)
            backward(ddp, accumulated[-1])
            found[name].append(gradients(shared))
            ddp.zero_grad()
    torch.save(found, Path(sys.argv[1], f"{world.rank}.pt"))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the results of both ranks."""
    folder = tmp_path_factory.mktemp("gradients")
    (folder / "ranks.py").write_text(SCRIPT)
    launcher.complete(2, [folder / "ranks.py", folder])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def mean(found, case):
    """Return the expected gradients of a case (0: one micro-batch, 1: two)."""
    return [(one + other) / 2 for one, other in zip(*(rank["own"][case] for rank in found), strict=True)]


def rounded_mean(found, case):
    """Return the expected gradients if gradients are rounded to 8 bits and summed in 8 bits."""
    own = [[gradient.bfloat16() / 2 for gradient in rank["own"][case]] for rank in found]
    return [(one + other).float() for one, other in zip(*own, strict=True)]


def equal(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", [0, 1], ids=["one micro-batch", "accumulated"])
@pytest.mark.parametrize("name", ["plain", "small buckets"])
def test_all_ranks_see_the_mean(found, name, case):
    for rank in found:
        assert equal(rank[name][case], mean(found, case))
        assert not equal(rank[name][case], rank["own"][case])


@pytest.mark.parametrize("case", [0, 1], ids=["one micro-batch", "accumulated"])
def test_compressed_gradients_are_the_mean_of_rounded_gradients(found, case):
    for rank in found:
        assert equal(rank["compressed"][case], rounded_mean(found, case))
        assert not equal(rank["compressed"][case], mean(found, case))
        for ours, exact in zip(rank["compressed"][case], mean(found, case), strict=True):
            torch.testing.assert_close(ours, exact, rtol=0.02, atol=float(exact.abs().max()) / 100)


TIMES = """
import sys, time
sys.path.append(sys.argv[2])
from pathlib import Path
import torch
from torch import nn
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
    timer, ready, started = RankTimer(world.device), [], []
    ddp = wrap_ddp(model, False, timer)
    model[1].layer0.conv1.weight.register_post_accumulate_grad_hook(lambda _: ready.append(time.monotonic()))
    model[1].layer2.register_full_backward_hook(lambda *_: time.sleep(0.05))  # long before the last gradient
    def run(step, micro_batch):
        started.append(time.monotonic())
        if step:
            timer.start(step, 0.25)
        ddp(micro_batch).square().mean().backward()

    run(0, torch.randn(2, 3, 32, 32))  # DDP rebuilds its buckets after the first pass.
    for step in range(1, 4):
        with ddp.no_sync():
            run(step, torch.randn(2, 3, 32, 32))
        timer.stop()
        run(step, torch.randn(2, 3, 32, 32))
    times = [end - start for start, end in zip(started, ready, strict=True)][1:]
    torch.save({"times": tuple(timer.read()), "gradient": sum(times) / 3}, Path(sys.argv[1], f"{world.rank}.pt"))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Return the results of both ranks. The forward pass of rank 1 sleeps 0.2 s."""
    folder = tmp_path_factory.mktemp("times")
    (folder / "ranks.py").write_text(TIMES)
    launcher.complete(2, [folder / "ranks.py", folder, Path(__file__).parents[1]])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_the_end_is_the_moment_in_which_the_last_bucket_is_ready(measured):
    """The oracle is a hook of the first layer's weight, whose gradient is the last one of each backward pass."""
    for rank in measured:
        assert rank["times"][2] == pytest.approx(rank["gradient"], abs=0.02)


def test_the_time_of_a_slow_rank_is_its_own(measured):
    """Rank 1 sleeps 0.2 s in both passes of a step. Rank 0 waits in each all-reduce, and the wait does not count."""
    (_, data, fast), (_, _, slow) = (rank["times"] for rank in measured)
    assert slow - fast == pytest.approx(0.4, abs=0.07)
    assert data == 0.5


def test_mean_times_of_steps():
    """A backward pass without a start, such as the warm-up, does not count, and only the first end counts."""
    timer = RankTimer(torch.device("cpu"))
    timer.stop()
    assert timer.read()[1:] == (0.0, 0.0)
    for step, micro_batch in ((3, 0), (3, 1), (4, 0), (4, 1)):
        timer.start(step, 0.5 + micro_batch)
        time.sleep(0.02)
        timer.stop()
        time.sleep(0.05)  # The time after the last gradient does not count.
        timer.stop()
    times = timer.read()
    assert times.data == 2.0
    assert times.computing == pytest.approx(0.04, abs=0.02)
    assert timer.read()[1:] == (0.0, 0.0)


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
    timer = RankTimer(torch.device("cuda"))
    for step in range(100):
        FakeEvent.device_time = FakeEvent.made * 10.0 - 25
        timer.start(step, 0.0)
        timer.stop()
        assert len(timer._passing) <= 3
    FakeEvent.device_time = 1e9
    assert timer.read().computing == pytest.approx(0.01)  # 10 ms between two events


@pytest.mark.gpu
def test_on_a_real_gpu_nothing_waits_and_the_time_is_that_of_the_device():
    """The device is busy for longer than the host needs to queue the work. An event of torch is the oracle."""
    device = torch.device("cuda")
    model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8))).to(device)
    timer, images = RankTimer(device), torch.randn(4096, 4096, device=device)
    model(images).square().mean().backward()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        begin.record()
        for step in range(20):
            timer.start(step, 0.0)
            model(images).square().mean().backward()
            timer.stop()
        end.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    end.synchronize()
    assert timer.read().computing == pytest.approx(begin.elapsed_time(end) / 1000 / 20, rel=0.1)
