"""Memory of the CPU between steps."""

from __future__ import annotations

import ctypes

import torch

# The parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(device: torch.device) -> bool:
    """Let this process keep what it frees, for a model that trains on the CPU. Returns whether that could be said.

    glibc gives large blocks back to the system at once, and every step would get all its activations anew as pages that
    the kernel has to fill with zeros: half a million page faults a step, a fifth of its time or more. The process grows
    to its peak as before, and then stays there. Nothing is done for a GPU, whose memory torch keeps by itself, nor with
    another C library than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if device.type != "cpu" or mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    return all(mallopt(name, value) for name, value in settings.items())
