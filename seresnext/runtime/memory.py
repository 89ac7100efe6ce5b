"""Memory of the CPU between steps."""

from __future__ import annotations

import ctypes

import torch

# The parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2 << 20  # linux/mman.h
# Addresses that are asked for huge pages: more than a step of a sensible micro-batch needs. Memory only when used.
_HEAP_BYTES = 16 << 30


def tune_malloc(device: torch.device) -> bool:
    """Let this process keep what it frees, for a model that trains on the CPU. Returns whether that could be said.

    glibc gives large blocks back to the system at once, and every step would get all its activations anew as pages that
    the kernel has to fill with zeros: half a million page faults a step, a fifth of its time or more. The process grows
    to its peak as before, and then stays there, where Linux allows in pages of 2 MiB. Nothing is done for a GPU, whose
    memory torch keeps by itself, nor with another C library than glibc.
    """
    libc = ctypes.CDLL(None)
    if device.type != "cpu" or not hasattr(libc, "mallopt"):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    kept = all(libc.mallopt(name, value) for name, value in settings.items())
    if kept:
        _ask_for_huge_pages(libc)
    return kept


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Let the heap grow by a stretch of addresses that are marked; where the system refuses, pages stay small."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(_HEAP_BYTES)
    if start is None:
        return
    first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(first, (start + _HEAP_BYTES - first) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
    libc.free(start)
