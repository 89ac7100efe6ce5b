"""The switches of torch for deterministic kernels."""

import os

import pytest
import torch

from seresnext.runtime import make_deterministic

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


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


@pytest.mark.gpu
@pytest.mark.parametrize("enabled", [True, False])
def test_an_operation_without_a_deterministic_kernel_is_refused(enabled):
    make_deterministic(enabled)
    images = torch.randn(1, 1, 4, 4, device="cuda", requires_grad=True)
    pooled = torch.nn.functional.adaptive_avg_pool2d(images, 3)
    if enabled:
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            pooled.sum().backward()
    else:
        pooled.sum().backward()
