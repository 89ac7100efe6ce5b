"""torch.compile: when, and that the compiled model is the eager one."""

import shutil

import pytest
import torch
from torch import nn

from seresnext.runtime import compile_forward, resolve_compile

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.fixture
def compilers(monkeypatch):
    """`compilers("g++")` makes these the only programs that are installed."""

    def pretend(*names):
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in names else None)

    return pretend


@pytest.mark.parametrize(
    ("requested", "device", "expected"),
    [
        ("auto", CPU, False),
        ("auto", GPU, True),
        (True, CPU, True),
        (True, GPU, True),
        (False, CPU, False),
        (False, GPU, False),
    ],
)
def test_when(compilers, requested, device, expected):
    compilers("g++")
    assert resolve_compile(requested, device) == (expected, None)


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
def test_any_compiler_will_do(compilers, name):
    compilers(name)
    assert resolve_compile(True, CPU) == (True, None)


@pytest.mark.parametrize(("requested", "device"), [("auto", GPU), (True, GPU), (True, CPU)])
def test_without_a_compiler_it_is_eager_and_says_so(compilers, requested, device):
    compilers("gcc")  # A C compiler is not enough.
    compiled, notice = resolve_compile(requested, device)
    assert compiled is False
    assert notice.startswith("no C++ compiler found: the model runs eagerly")
    assert "apt-get install g++" in notice


@pytest.mark.parametrize(("requested", "device"), [("auto", CPU), (False, GPU), (False, CPU)])
def test_nothing_is_said_where_nothing_was_asked_for(compilers, requested, device):
    compilers()
    assert resolve_compile(requested, device) == (False, None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(x).relu() + 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of torch's own, in its compiler.
@pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=pytest.mark.gpu)], ids=["cpu", "gpu"])
def test_the_compiled_model_is_the_eager_one_with_its_dropout(device):
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
    assert torch.equal(eager[0] == 0, fast[0] == 0)  # The same elements were dropped,
    assert 0.4 < float((eager[0] == 0).float().mean()) < 0.6
    for one, other in zip(eager, fast, strict=True):  # and the rest is the same but for rounding.
        torch.testing.assert_close(one, other)
    assert not torch.equal(run(compiled, 6)[0] == 0, eager[0] == 0)


class Pool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * x.shape[3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of torch's own, in its compiler.
def test_each_size_of_images_is_compiled_by_itself():
    """Ten sizes, more than torch compiles unless told to; code for one size does not know which came before."""
    if not resolve_compile(True, CPU)[0]:
        pytest.skip("needs a C++ compiler")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = compile_forward(Pool())
    for size in range(3, 13):
        images = torch.randn(2, 3, size, size)
        torch.testing.assert_close(compiled(images), Pool()(images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 10
