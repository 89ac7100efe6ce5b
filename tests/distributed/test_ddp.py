"""Gradients of two real processes with a timer, against the mean of the gradients of each process."""

import launcher
import pytest
import torch

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
        ddp, timer = wrap_ddp(shared, compress=name == "compressed"), RankTimer(shared, world.device)
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
