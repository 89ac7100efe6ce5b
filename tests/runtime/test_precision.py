"""Precisions: formats of weights and of computation, and `auto` by device."""

import pytest
import torch
from torch import nn

from seresnext.errors import UsageError
from seresnext.recipe.schema import RuntimeSection
from seresnext.runtime import PRECISIONS, resolve_precision

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "product"),
    [("fp64", torch.float64), ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_formats(name, product):
    weights = torch.float64 if name == "fp64" else torch.float32
    precision = PRECISIONS[name]
    model = precision.apply_to(nn.Conv2d(3, 4, 3), CPU, channels_last=True)
    images = torch.randn(2, 3, 8, 8, dtype=precision.weights)
    with precision.autocast(CPU):
        assert model(images).dtype == product
    assert model(images).dtype == weights  # outside of autocast
    assert {p.dtype for p in model.parameters()} == {weights}
    assert precision.scaler(CPU).is_enabled() is (name == "fp16")


def test_the_schema_accepts_the_names_of_the_table():
    allowed = set(RuntimeSection.model_fields["precision"].annotation.__args__)
    assert allowed == {"auto", *PRECISIONS}
    assert all(precision.name == name for name, precision in PRECISIONS.items())


@pytest.mark.parametrize("channels_last", [True, False])
def test_apply_to_lays_out_weights_in_place(channels_last):
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    placed = PRECISIONS["fp64"].apply_to(model, CPU, channels_last)
    assert placed is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert model[0].weight.is_contiguous() is not channels_last
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name].to(tensor.dtype)), name
    assert model[1].num_batches_tracked.dtype == torch.int64


# ------------------------------------------------------------------------------------------------ auto


@pytest.fixture
def capability(monkeypatch):
    """`capability(8, 0)` pretends that the GPU has this compute capability."""

    def pretend(*version):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")

    return pretend


@pytest.mark.parametrize(("version", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_auto_by_device(capability, version, expected):
    capability(*version)
    assert resolve_precision("auto", GPU) == expected
    assert resolve_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize("name", PRECISIONS)
def test_an_explicit_precision_is_kept(capability, name):
    capability(9, 0)
    assert resolve_precision(name, CPU) == resolve_precision(name, GPU) == name


def test_bf16_on_an_old_gpu_is_refused(capability):
    capability(7, 5)
    with pytest.raises(UsageError, match=r"bf16, but Old GPU .*set runtime.precision to fp16 or auto"):
        resolve_precision("bf16", GPU)
    assert resolve_precision("fp16", GPU) == "fp16"


@pytest.mark.gpu
def test_auto_on_this_gpu():
    precision = PRECISIONS[resolve_precision("auto", torch.device("cuda"))]
    assert (precision.name == "bf16") is torch.cuda.is_bf16_supported(including_emulation=False)
    model = precision.apply_to(nn.Conv2d(3, 4, 3), GPU, channels_last=True)
    with precision.autocast(GPU):
        assert model(torch.randn(2, 3, 8, 8, device=GPU)).dtype == precision.autocast_to
