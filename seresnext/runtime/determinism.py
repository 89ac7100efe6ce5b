"""Bit-for-bit repeatable kernels."""

from __future__ import annotations

import os

import torch


def make_deterministic(enabled: bool) -> None:
    """Choose kernels that give the same bits every time, or those that are fastest.

    On the CPU kernels repeat their bits anyway. On CUDA the deterministic ones are slower: cuDNN may not time its
    candidates, and cuBLAS needs a fixed workspace (CUBLAS_WORKSPACE_CONFIG, cuBLAS documentation, "Results
    reproducibility").
    """
    torch.backends.cudnn.benchmark = not enabled
    # fp32 means IEEE single precision here; torch would let cuDNN round inputs of convolutions to TF32.
    torch.backends.cudnn.allow_tf32 = False
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
