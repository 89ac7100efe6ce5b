"""Deterministic kernels."""

from __future__ import annotations

import os

import torch


def make_deterministic(enabled: bool) -> None:
    """Select deterministic kernels if `enabled`, else the fastest kernels.

    CPU kernels are always deterministic. On CUDA deterministic kernels are slower: cuDNN cannot benchmark several
    kernels, and cuBLAS needs a fixed workspace (CUBLAS_WORKSPACE_CONFIG, cuBLAS documentation, "Results
    reproducibility").
    """
    torch.backends.cudnn.benchmark = not enabled
    # fp32 means IEEE single precision. By default torch lets cuDNN round the inputs of convolutions to TF32.
    torch.backends.cudnn.allow_tf32 = False
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
