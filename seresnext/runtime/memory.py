"""Settings of glibc's malloc for training on a CPU."""

from __future__ import annotations

import ctypes

import torch

# The parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2 << 20  # linux/mman.h
# The range of addresses that is marked for huge pages: more than a step needs. Unused addresses take no memory.
_HEAP_BYTES = 16 << 30


def tune_malloc(device: torch.device) -> bool:
    """Make malloc keep freed memory in this process, for training on a CPU. Returns whether the setting took effect.

    By default glibc returns large blocks to the system at once. Each step then allocates all activations again, as
    pages that the kernel must fill with zeros: half a million page faults and at least 20 % of the time of a step.
    With this setting the process grows to the same peak and keeps the memory, in pages of 2 MiB if Linux allows.

    The setting is made only for the CPU, because torch caches GPU memory, and only with glibc.
    """
    libc = ctypes.CDLL(None)
    if device.type != "cpu" or not hasattr(libc, "mallopt"):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    has_effect = all(libc.mallopt(name, value) for name, value in settings.items())
    if has_effect:
        _request_huge_pages(libc)
    return has_effect


def _request_huge_pages(libc: ctypes.CDLL) -> None:
    """Extend the heap by a range of addresses marked for huge pages. If the system refuses, pages stay small."""
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
