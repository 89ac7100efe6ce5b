"""Gradients of two real processes, against the mean of what each computes by itself."""

import pytest
import torch

SCRIPT = """
import copy, sys
from pathlib import Path
import torch
from torch import nn
from seresnext.distributed import DDPOptions, wrap_ddp, open_world

EXCHANGES = {
    "plain": DDPOptions(),
    "small buckets": DDPOptions(bucket_mb=0.001),
    "compressed": DDPOptions(compress=True),
    "static graph": DDPOptions(static_graph=True),
}

def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]

def backward(forward, images):
    (forward(images) ** 2).mean().backward()

with open_world() as world:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 50))
    torch.manual_seed(100 + world.rank)
    first, second = torch.randn(2, 4, 3, 6, 6)
    found = {"own": [], "buckets": {}}
    for accumulated in ([second], [first, second]):
        alone = copy.deepcopy(model)
        for images in accumulated:
            backward(alone, images)
        found["own"].append(gradients(alone))
    for name, exchange in EXCHANGES.items():
        shared = copy.deepcopy(model)
        ddp = wrap_ddp(shared, exchange)
        backward(ddp, first)  # DDP makes its buckets anew after its first step, and a static graph learns its order.
        ddp.zero_grad()
        found[name] = []
        for accumulated in ([second], [first, second]):
            for images in accumulated[:-1]:
                with ddp.no_sync():
                    backward(ddp, images)
            backward(ddp, accumulated[-1])
            found[name].append(gradients(shared))
            ddp.zero_grad()
        found["buckets"][name] = len(ddp.reducer._get_zeros_like_grad_buckets())
    torch.save(found, Path(sys.argv[1], f"{world.rank}.pt"))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks found."""
    return tmp_path_factory.mktemp("gradients")


@pytest.fixture
def found(ranks, run_world):
    if not list(ranks.iterdir()):
        script = ranks / "ranks.py"
        script.write_text(SCRIPT)
        result = run_world(2, [script, ranks])
        assert result.returncode == 0, result.output
    return [torch.load(ranks / f"{rank}.pt", weights_only=True) for rank in range(2)]


def mean(found, case):
    """The gradients of a case (0: one micro-batch, 1: two) that two ranks should see."""
    return [(one + other) / 2 for one, other in zip(*(rank["own"][case] for rank in found), strict=True)]


def rounded_mean(found, case):
    """The same, of numbers of 8 bits that are added up in 8 bits."""
    own = [[gradient.bfloat16() / 2 for gradient in rank["own"][case]] for rank in found]
    return [(one + other).float() for one, other in zip(*own, strict=True)]


def equal(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", [0, 1], ids=["one micro-batch", "accumulated"])
@pytest.mark.parametrize("name", ["plain", "small buckets", "static graph"])
def test_all_ranks_see_the_mean(found, name, case):
    for rank in found:
        assert equal(rank[name][case], mean(found, case))
        assert not equal(rank[name][case], rank["own"][case])


@pytest.mark.parametrize("case", [0, 1], ids=["one micro-batch", "accumulated"])
def test_compressed_they_see_the_mean_of_rounded_gradients(found, case):
    for rank in found:
        assert equal(rank["compressed"][case], rounded_mean(found, case))
        assert not equal(rank["compressed"][case], mean(found, case))
        for ours, exact in zip(rank["compressed"][case], mean(found, case), strict=True):
            torch.testing.assert_close(ours, exact, rtol=0.02, atol=float(exact.abs().max()) / 100)


def test_buckets_have_the_size_that_was_asked_for(found):
    for rank in found:
        # Three layers with 216 + 8 + 8 + 8 + 6400 + 50 numbers: one bucket by default, else no two tensors above 1 KB.
        assert rank["buckets"]["plain"] == 1
        assert rank["buckets"]["small buckets"] > 1
