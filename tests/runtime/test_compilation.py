"""torch.compile: the choice by recipe and device, and equal results of compiled and eager models."""

import shutil

import pytest
import torch
from torch import nn

from seresnext.runtime import compile_forward, resolve_compile

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.fixture
def compilers(monkeypatch):
    """`compilers("g++")` pretends that only these programs are installed."""

    def pretend(*names):
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in names else None)

    return pretend


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
@pytest.mark.parametrize(
    ("requested", "device", "expected"),
    [("auto", CPU, False), ("auto", GPU, True), (True, CPU, True), (True, GPU, True), (False, GPU, False)],
)
def test_compile_by_recipe_device_and_compiler(compilers, requested, device, expected, name):
    compilers(name)
    assert resolve_compile(requested, device) == (expected, None)
    compilers("gcc")  # A C compiler is not enough.
    compiled, notice = resolve_compile(requested, device)
    assert compiled is False
    assert (notice is not None) is expected
    assert notice is None or "apt-get install g++" in notice


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(x).relu() + 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's compiler
@pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=pytest.mark.gpu)], ids=["cpu", "gpu"])
def test_the_compiled_model_equals_the_eager_model_with_dropout(device):
    if not resolve_compile(True, device)[0]:
        pytest.skip("needs a C++ compiler")
    model = Net().to(device)
    images = torch.randn(32, 16, device=device)
    compiled = compile_forward(model)

    @torch.no_grad()
    def run(forward, seed):
        model.norm.reset_running_stats()
        torch.manual_seed(seed)
        return forward(images), model.norm.running_var.clone()

    eager, fast = run(model, 5), run(compiled, 5)
    assert torch.equal(eager[0] == 0, fast[0] == 0)  # The same elements are dropped.
    assert 0.4 < float((eager[0] == 0).float().mean()) < 0.6
    for one, other in zip(eager, fast, strict=True):  # Other elements differ only by rounding.
        torch.testing.assert_close(one, other)
    assert not torch.equal(run(compiled, 6)[0] == 0, eager[0] == 0)


class Pool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * x.shape[3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's compiler
def test_each_image_size_is_compiled_once():
    """Ten sizes exceed torch's default limit. Code for a size does not depend on the sizes before."""
    if not resolve_compile(True, CPU)[0]:
        pytest.skip("needs a C++ compiler")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = compile_forward(Pool())
    for size in range(3, 13):
        images = torch.randn(2, 3, size, size)
        torch.testing.assert_close(compiled(images), Pool()(images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 10
