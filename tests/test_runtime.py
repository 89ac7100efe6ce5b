"""Precision, compilation, deterministic kernels and malloc, by recipe and device."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from seresnext.errors import UsageError
from seresnext.recipe.schema import RuntimeSection
from seresnext.runtime import (
    PRECISIONS,
    compile_forward,
    make_deterministic,
    resolve_compile,
    resolve_precision,
    tune_malloc,
)

CPU = torch.device("cpu")
GPU = torch.device("cuda")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("name", "product"),
    [("fp64", torch.float64), ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_formats_and_layouts(name, product, channels_last):
    weights = torch.float64 if name == "fp64" else torch.float32
    precision = PRECISIONS[name]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert precision.apply_to(model, CPU, channels_last) is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert {p.dtype for p in model.parameters()} == {weights}
    assert model[1].num_batches_tracked.dtype == torch.int64
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key].to(tensor.dtype)), key
    images = torch.randn(2, 3, 8, 8, dtype=precision.weights)
    with precision.autocast(CPU):
        assert model[0](images).dtype == product
    assert model[0](images).dtype == weights  # outside of autocast
    assert precision.scaler(CPU).is_enabled() is (name == "fp16")


def test_the_schema_accepts_the_names_of_the_table():
    allowed = set(RuntimeSection.model_fields["precision"].annotation.__args__)
    assert allowed == {"auto", *PRECISIONS}


@pytest.fixture
def capability(monkeypatch):
    """`capability(8, 0)` pretends that the GPU has this compute capability."""

    def pretend(*version):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")

    return pretend


@pytest.mark.parametrize(
    ("requested", "version", "expected"),
    [
        ("auto", (7, 5), "fp16"),
        ("auto", (8, 0), "bf16"),
        ("auto", (12, 0), "bf16"),
        ("fp16", (7, 5), "fp16"),
        *((name, (9, 0), name) for name in PRECISIONS),
    ],
)
def test_precision_by_recipe_and_device(capability, requested, version, expected):
    capability(*version)
    assert resolve_precision(requested, GPU) == expected
    assert resolve_precision(requested, CPU) == ("fp32" if requested == "auto" else requested)


def test_bf16_on_an_old_gpu_is_refused(capability):
    capability(7, 5)
    with pytest.raises(UsageError, match=r"bf16, but Old GPU .*set runtime.precision to fp16 or auto"):
        resolve_precision("bf16", GPU)


@pytest.fixture
def compilers(monkeypatch):
    """`compilers("g++")` pretends that only these programs are installed."""

    def pretend(*names):
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in names else None)

    return pretend


@pytest.mark.parametrize(
    ("requested", "device", "expected", "name"),
    [("auto", CPU, False, "g++"), ("auto", GPU, True, "c++"), (True, CPU, True, "clang++"), (False, GPU, False, "g++")],
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


@pytest.fixture(autouse=True)
def switches(monkeypatch):
    """Restore the switches after the test."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    monkeypatch.setenv(CUBLAS, "")
    monkeypatch.delenv(CUBLAS)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("enabled", [True, False])
def test_switches(enabled):
    torch.backends.cudnn.allow_tf32 = True
    make_deterministic(enabled)
    assert torch.are_deterministic_algorithms_enabled() is enabled
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.benchmark is not enabled
    assert os.environ.get(CUBLAS) == (":4096:8" if enabled else None)
    assert not torch.backends.cudnn.allow_tf32  # fp32 is no TF32.
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_users_workspace_is_kept(monkeypatch):
    monkeypatch.setenv(CUBLAS, ":16:8")
    make_deterministic(True)
    assert os.environ[CUBLAS] == ":16:8"


STEPS = """
import resource, sys, torch
from seresnext.runtime import tune_malloc
if sys.argv[1] == "keep":
    assert tune_malloc(torch.device("cpu"))

def step():
    a = torch.zeros(16 << 20)  # 64 MiB, above any threshold at which glibc asks the system
    return (a + 1).sum()

for _ in range(8):  # warm-up
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2 * (64 << 20) // 4096  # two blocks a step


@pytest.mark.skipif(not tune_malloc(torch.device("cpu")), reason="glibc's malloc is not in use")
@pytest.mark.full
def test_a_step_reuses_the_memory_of_the_previous_step():
    def page_faults(mode):
        command = [sys.executable, "-c", STEPS, mode]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return int(result.stdout)

    assert page_faults("keep") < 0.05 * 3 * PAGES
    assert page_faults("leave") > 0.5 * 3 * PAGES  # The control, without the setting.


def test_nothing_is_set_for_a_gpu():
    assert not tune_malloc(torch.device("cuda"))
